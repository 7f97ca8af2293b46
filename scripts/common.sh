# What every script shares; sourced, not run. Environment variables: DATA (default data), OUT (output), BACKBONE (the
# YAML's), SHOTS (16), CFG (the method's YAML), PYTHON (.venv's where there is one and none is active).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DATA=${DATA:-data}
OUT=${OUT:-output}
SHOTS=${SHOTS:-16}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi

fail() { # one line, what to do about it, exit status 2
    echo "error: $*" >&2
    exit 2
}

usage() { # print the caller's leading comment
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1" >&2
    exit 2
}

# run_once FOLDER ARGUMENT ...: train.py into FOLDER, unless a finished run is there already.
run_once() {
    local folder=$1
    shift
    if [ -f "$folder/results.json" ]; then
        echo "Already done (delete $folder to run it again)"
    else
        "$PYTHON" train.py --root "$DATA" --output-dir "$folder" ${BACKBONE:+--backbone "$BACKBONE"} "$@"
    fi
}

# Split what follows DATASET and SEED: an optional number of epochs, then KEY VALUE pairs, into EPOCHS and OPTIONS.
split_options() {
    EPOCHS=
    if [[ ${1:-} =~ ^[0-9]+$ ]]; then
        EPOCHS=$1
        shift
    fi
    OPTIONS=("$@")
}
