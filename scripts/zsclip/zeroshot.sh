#!/usr/bin/env bash
# zeroshot.sh DATASET [CFG] [KEY VALUE ...]
# Zero-shot CLIP on the test set of a dataset: no training. DATASET.SUBSAMPLE_CLASSES base or new takes half the classes.
# Environment: DATA, OUT, BACKBONE (scripts/common.sh).
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ $# -ge 1 ] || usage "${BASH_SOURCE[0]}"
dataset=$1 cfg=vit_b16
shift
if [ $# -gt 0 ] && [[ $1 != *.* ]]; then
    cfg=$1
    shift
fi
folder=$OUT/ZeroshotCLIP/$cfg/$dataset
for option in "$@"; do
    case $option in base | new) folder=$folder/$option ;; esac
done
run_once "$folder" --trainer ZeroshotCLIP --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "configs/trainers/ZeroshotCLIP/$cfg.yaml" --eval-only "$@"
"$PYTHON" -m tools.base2new "$folder"
