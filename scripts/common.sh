# Shared by all scripts; sourced, not run. Environment variables and their defaults:
#   DATA (data), OUT (output), SHOTS (16), BACKBONE (the YAML's), CFG (see choose_cfg below), and
#   PYTHON (python; .venv/bin/python if it exists and no environment is active). PREPARE=1 downloads missing data.
set -euo pipefail
script=$(realpath "$0")
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
if [ "$PWD" != "$root" ]; then # the user's paths are relative to this folder
    [ -z "${DATA:-}" ] || DATA=$(realpath -m "$DATA")
    [ -z "${OUT:-}" ] || OUT=$(realpath -m "$OUT")
    [ ! -f "${BACKBONE:-}" ] || BACKBONE=$(realpath "$BACKBONE")
    cd "$root"
fi

DATA=${DATA:-data}
OUT=${OUT:-output}
SHOTS=${SHOTS:-16}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi

fail() { # one line with the problem and the fix, exit status 2
    echo "error: $*" >&2
    exit 2
}

usage() { # the comment at the head of the script that the user called
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script" >&2
    exit 2
}

# run_once FOLDER ARGUMENT ...: train.py into FOLDER, unless the same run has finished there.
run_once() {
    if [ "${PREPARE:-}" = 1 ]; then
        "$PYTHON" tools/prepare.py "$dataset" --root "$DATA"
        PREPARE= # once a script
    fi
    local slot="seed${seed:-}"
    [[ $slot != *" "* ]] || slot="seed{seed}" # train.py puts the run of each seed into a folder of its own
    set -- "${@//"seed${seed:-}"/$slot}"
    "$PYTHON" train.py --skip-finished --root "$DATA" --output-dir "$1" ${BACKBONE:+--backbone "$BACKBONE"} \
        ${REPORT_TO:+--report-to "$REPORT_TO"} ${QUIET:+--quiet} "${@:2}"
}

# read_call PROTOCOL METHOD DATASET SEED ... -> TRAINER, CFG and the variables of read_arguments
read_call() {
    [ $# -ge 2 ] || usage
    choose_method "$2"
    [ $# -ge 4 ] || usage
    choose_cfg "$1"
    read_arguments "${@:3}"
}

choose_method() { # METHOD, in upper or lower case -> TRAINER, the name of its folder
    local name names
    names=$(printf '%s\n' configs/trainers/*/*.yaml | cut -d/ -f3 | uniq | paste -sd ' ' -)
    TRAINER=
    for name in $names; do
        [ "${name,,}" != "${1,,}" ] || [ "$TRAINER" = "$1" ] || TRAINER=$name # an exact match wins
    done
    [ -z "$TRAINER" ] || return 0
    [ "${1,,}" != zeroshotclip ] || fail "ZeroshotCLIP learns no prompts: use scripts/zsclip/zeroshot.sh DATASET"
    fail "no YAML file in configs/trainers/$1: METHOD can be $names"
}

# choose_cfg PROTOCOL -> CFG, the first of these: the user's; for BACKBONE=small, `small` (cross_dataset:
# `small_cross_datasets`); what the method's file `defaults` names for the protocol; the method's only YAML.
choose_cfg() {
    [ -z "${CFG:-}" ] || return 0
    local names small=small
    names=$(known "trainers/$TRAINER")
    [ "$1" != cross_dataset ] || [[ " $names " != *" small_cross_datasets "* ]] || small=small_cross_datasets
    if [ "${BACKBONE:-}" = small ] && [[ " $names " == *" $small "* ]]; then
        CFG=$small
    elif look_up "configs/trainers/$TRAINER/defaults" "$1" && [ ${#words[@]} -gt 0 ]; then
        CFG=${words[0]}
    elif [ "$names" = "small small_cross_datasets" ]; then
        CFG=$small
    elif [[ $names != *" "* ]]; then
        CFG=$names
    else
        fail "$TRAINER has several YAML files and no default for $1: set CFG to one of: $names"
    fi
}

# look_up FILE WORD -> words: the words after WORD in the first line of FILE that starts with it; `#` begins a comment
look_up() {
    local -a line
    [ -f "$1" ] || return 1
    while read -ra line; do
        if [ "${line[0]:-}" = "$2" ]; then
            words=("${line[@]:1}")
            return 0
        fi
    done < <(sed 's/#.*//' "$1" && echo)
    return 1
}

# read_arguments DATASET SEED [EPOCHS] [KEY VALUE ...] -> dataset, seed, epochs, options, shared (by all calls)
# SEED may be several: "1 2 3".
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

check_names() { # DATASET TRAINER CFG: fail if one of the two YAML files does not exist
    [ -f "configs/datasets/$1.yaml" ] || fail "no configs/datasets/$1.yaml: DATASET can be $(known datasets)"
    [ -f "configs/trainers/$2/$3.yaml" ] || fail "no configs/trainers/$2/$3.yaml: CFG can be $(known "trainers/$2")"
}

known() { # the names of all YAML files in a folder of configs/
    (cd "configs/$1" && ls -- *.yaml | sed 's/\.yaml$//' | paste -sd ' ' -)
}

# train FOLDER KEY VALUE ...: run_once with the user's number of epochs and options
train() {
    run_once "$1" "${shared[@]}" "${@:2}" ${epochs:+OPTIM.MAX_EPOCH "$epochs"} ${options[@]+"${options[@]}"}
}

# evaluate FOLDER TRAINED_FOLDER KEY VALUE ...: the same, to test the prompts of a training run
evaluate() {
    [ ! -d "$2" ] || [ -n "$epochs" ] || [ -f "$2/results.json" ] ||
        fail "the training run in $2 is not finished: finish it first, or give EPOCHS, the epoch to test"
    run_once "$1" "${shared[@]}" --eval-only --model-dir "$2" ${epochs:+--load-epoch "$epochs"} "${@:3}" \
        ${options[@]+"${options[@]}"}
}

report() { # one line for the result of each run, seed by seed
    local one
    for one in ${seed:-0}; do
        "$PYTHON" -m tools.base2new "${@//"seed${seed:-0}"/seed$one}"
    done
}
