# What every script shares; sourced, not run. Environment variables and their defaults:
#   DATA (data), OUT (output), SHOTS (16), BACKBONE (the YAML's), CFG (the method's YAML; `small` for BACKBONE=small), and
#   PYTHON (.venv's where there is one and no environment is active). PREPARE=1 gets what is missing of the dataset.
set -euo pipefail
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
if [ "$PWD" != "$root" ]; then # paths that were given are meant from here
    [ -z "${DATA:-}" ] || DATA=$(realpath -m "$DATA")
    [ -z "${OUT:-}" ] || OUT=$(realpath -m "$OUT")
    [ ! -f "${BACKBONE:-}" ] || BACKBONE=$(realpath "$BACKBONE")
    cd "$root"
fi

DATA=${DATA:-data}
OUT=${OUT:-output}
SHOTS=${SHOTS:-16}
[ "${BACKBONE:-}" != small ] || DEFAULT_CFG=${SMALL_CFG:-small} # settings for its size of images
CFG=${CFG:-${DEFAULT_CFG:-}}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi

fail() { # one line that says what to do about it, exit status 2
    echo "error: $*" >&2
    exit 2
}

usage() { # the comment at the head of the script that was called
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${USAGE:-$0}" >&2
    exit 2
}

# run_once FOLDER ARGUMENT ...: train.py into FOLDER, unless this very run is there already, finished.
run_once() {
    if [ "${PREPARE:-}" = 1 ]; then
        "$PYTHON" tools/prepare.py "$dataset" --root "$DATA"
        PREPARE= # once a script
    fi
    "$PYTHON" train.py --skip-finished --root "$DATA" --output-dir "$1" ${BACKBONE:+--backbone "$BACKBONE"} "${@:2}"
}

# read_arguments DATASET SEED [EPOCHS] [KEY VALUE ...] -> dataset, seed, epochs, options, and what every call shares
read_arguments() {
    [ $# -ge 2 ] || usage
    dataset=$1 seed=$2
    shift 2
    epochs=
    if [[ ${1:-} =~ ^[0-9]+$ ]]; then
        epochs=$1
        shift
    fi
    options=("$@")
    check_names "$dataset" "$TRAINER" "$CFG"
    shared=(--seed "$seed" --trainer "$TRAINER" --dataset-config-file "configs/datasets/$dataset.yaml"
        --config-file "configs/trainers/$TRAINER/$CFG.yaml")
}

check_names() { # DATASET TRAINER CFG: refuse what there is no YAML file of
    [ -f "configs/datasets/$1.yaml" ] || fail "no configs/datasets/$1.yaml: DATASET can be $(known datasets)"
    [ -f "configs/trainers/$2/$3.yaml" ] || fail "no configs/trainers/$2/$3.yaml: CFG can be $(known "trainers/$2")"
}

known() { # names of the YAML files in a folder of configs/
    (cd "configs/$1" && ls -- *.yaml | sed 's/\.yaml$//' | paste -sd ' ')
}

# train FOLDER KEY VALUE ...: run_once with the number of epochs and the options that were given
train() {
    run_once "$1" "${shared[@]}" "${@:2}" ${epochs:+OPTIM.MAX_EPOCH "$epochs"} ${options[@]+"${options[@]}"}
}

# evaluate FOLDER TRAINED_FOLDER KEY VALUE ...: likewise, testing what a run has learned
evaluate() {
    [ -d "$2" ] || fail "no trained prompts in $2: train them first, with the same SEED, SHOTS, CFG and OUT"
    [ -n "$epochs" ] || [ -f "$2/results.json" ] ||
        fail "the training run in $2 is not finished: finish it first, or say which of its EPOCHS to test"
    run_once "$1" "${shared[@]}" --eval-only --model-dir "$2" ${epochs:+--load-epoch "$epochs"} "${@:3}" \
        ${options[@]+"${options[@]}"}
}

report() { # say in a line each what these runs reached
    "$PYTHON" -m tools.base2new "$@"
}
