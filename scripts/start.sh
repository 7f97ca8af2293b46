# Read by every script in this folder: its arguments and variables, and how it runs a command.
#
# SEED can be several: "1 2 3". EPOCHS: how many to train, or the one to test.
# Environment variables:
#   DATA, OUT     folders of the datasets (data) and of the results (output)
#   SHOTS         images of each class; for few-shot scripts several are possible: "4 8"
#   CFG           YAML file in configs/trainers/METHOD/, instead of the script's
#   BACKBONE      small, ViT-B/16, a weight file, ...: instead of the YAML file's
#   PLUGIN        Python file with METHOD (train.py --plugin): it is run
#   PYTHON        the interpreter (python, or .venv/bin/python if no environment is active)
#   PREPARE=1     download the dataset if it is missing
#   DRY_RUN=1     print the commands and do nothing
#   QUIET=1       print errors and results only
#   REPORT_TO     tensorboard,wandb

set -eu
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
HERE=$PWD
unset EPOCHS # an argument

fail() {
    echo "error: $1: $2" >&2
    exit 2
}

comment() { # the comment at the top of a script
    awk '/^#!/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"
}

from_here() { # make the path in the variable NAME absolute: it is the user's, from another folder
    case ${!1:-/} in
        /*) ;;
        *) if [ "$HERE" != "$ROOT" ]; then printf -v "$1" %s "$HERE/${!1}"; fi ;;
    esac
}

case " $* " in
    *" --help "* | *" -h "*)
        comment "$0"
        echo
        comment "${BASH_SOURCE[0]}" | tail -n +3
        exit
        ;;
    *" OUTPUT_DIR "*)
        fail "OUTPUT_DIR is among the KEY VALUE pairs" "name the folder of all results by OUT=FOLDER"
        ;;
esac
if [ -n "${NOTE:-}" ]; then echo "note: $NOTE" >&2; fi

# The positional arguments, which the script names; KEY VALUE pairs are left in $@
usage="$(basename "$0") takes $ARGUMENTS"
given=$#
for name in $ARGUMENTS; do
    case $name in
        "[CFG]") # a KEY has a dot or no small letter
            case ${1:-} in *.*) ;; *[a-z]*) CFG=$1 && shift ;; esac ;;
        "[EPOCHS]")
            case ${1:-} in "" | *[!0-9]*) ;; *) EPOCHS=$1 && shift ;; esac ;;
        *)
            if [ -z "${1:-}" ]; then
                fail "$usage, and got $given of these" "${NOTE:-see $0 --help}"
            fi
            printf -v "$name" %s "$1"
            shift
            ;;
    esac
done
for name in SEED SHOTS EPOCHS; do
    if [[ ! ${!name:-1} =~ ^(-1|[0-9]{1,9})( +(-1|[0-9]{1,9}))*$ ]]; then
        fail "$usage: $name is '${!name}'" "${NOTE:-give an integer}"
    fi
done

for name in DRY_RUN PREPARE QUIET; do
    if [ "${!name:-0}" = 0 ]; then printf -v "$name" ""; fi
done
CFG=${CFG:-}
unset prepared
BACKBONE=${BACKBONE:-}
if [ -f "$BACKBONE" ]; then from_here BACKBONE; fi
for name in DATA OUT PLUGIN MODEL_DIR WEIGHTS; do
    from_here "$name"
done
DATA=${DATA:-data}
OUT=${OUT:-output}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$ROOT/.venv/bin/python" ]; then
        PYTHON=$ROOT/.venv/bin/python
    fi
fi
if ! command -v "$PYTHON" >/dev/null; then
    fail "there is no $PYTHON" "run \`make setup\` in $ROOT, or set PYTHON to your interpreter"
fi
OPTIONS=(--skip-finished) # of every call of train.py
if [ -n "${PLUGIN:-}" ]; then OPTIONS+=(--plugin "$PLUGIN"); fi
if [ -n "$BACKBONE" ]; then OPTIONS+=(--backbone "$BACKBONE"); fi
if [ -n "${REPORT_TO:-}" ]; then OPTIONS+=(--report-to "$REPORT_TO"); fi
if [ -n "$QUIET" ]; then OPTIONS+=(--quiet); fi
program=("$PYTHON")
if [ -f "$ROOT/__init__.py" ]; then # pip has installed the project: its command finds configs/
    program+=(-m modular_prompt_learning)
else
    cd "$ROOT"
    if [ -n "$DRY_RUN" ] && [ "$HERE" != "$ROOT" ]; then printf 'cd %q\n' "$ROOT"; fi
fi

run() { # python PROGRAM ...: ends the script if it fails
    if [ -n "$DRY_RUN" ]; then
        printf '%q ' "$@"
        echo
        return
    fi
    if [ -n "$PREPARE" ] && [ "$DATASET" != "${prepared:-}" ]; then
        prepared=$DATASET
        start python tools/prepare.py "$DATASET" --root "$DATA"
    fi
    start "$@"
}

start() { # Ctrl-C reaches the program, too; SIGTERM to the script alone is passed on to it
    (
        trap - INT
        exec "${program[@]}" "${@:2}"
    ) &
    local program=$! status=0
    trap : INT
    trap 'kill -TERM $program' TERM
    wait "$program" || status=$?
    while kill -0 "$program" 2>/dev/null; do # a signal has ended `wait`
        wait "$program" && status=0 || status=$?
    done
    trap - INT TERM
    if [ "$status" != 0 ]; then exit "$status"; fi
}

recipe() { # PROTOCOL DATASET SHOTS: the settings of METHOD, and its exact name
    local found
    found=$(start python tools/recipe.py "$METHOD" "$@" --cfg "$CFG" --backbone "$BACKBONE" \
        ${PLUGIN:+--plugin "$PLUGIN"})
    { read -r METHOD; read -r yaml; read -r settings || true; } <<<"$found"
    cfg=$(basename "$yaml" .yaml)
}

check_finished() { # FOLDER of a training run, unless the epoch to test is given
    if [ -z "$DRY_RUN$epoch" ] && [ -d "$1" ] && [ ! -f "$1/results.json" ]; then
        fail "the training run in $1 is not finished" "finish it first, or give EPOCHS, the one to test"
    fi
}

harmonic_mean() { # of the base classes, in the FOLDER of a training run, and the new ones
    if [ -z "$DRY_RUN" ] && [ -f "$1/results.json" ]; then start python tools/base2new.py "$@"; fi
}
