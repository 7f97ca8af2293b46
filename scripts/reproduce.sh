#!/usr/bin/env bash
# reproduce.sh METHOD PROTOCOL DATASET SEED WEIGHTS [OPTION ...]
# Test published prompts in the folder WEIGHTS: PROTOCOL is base2new, cross_dataset or few_shot. For few_shot, SHOTS takes
# the place of SEED, and the seeds are 1, 2 and 3. OPTION: see `python tools/reproduce.py --help`.
# Environment: DATA, OUT, CFG, BACKBONE, PYTHON (scripts/common.sh).
case ${5:-} in /* | http*) weights=${5:-} ;; *) weights=$PWD/${5:-} ;; esac
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 5 ] || usage
chosen=(--seeds "$4")
[ "$2" != few_shot ] || chosen=(--seeds 1 2 3 --shots "$4")
exec "$PYTHON" tools/reproduce.py "$1" --checkpoints "$weights" --protocol "$2" --datasets "$3" "${chosen[@]}" \
    --root "$DATA" --output "$OUT" ${CFG:+--cfg "$CFG"} ${BACKBONE:+--backbone "$BACKBONE"} "${@:6}"
