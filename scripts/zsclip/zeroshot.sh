#!/usr/bin/env bash
# zeroshot.sh DATASET [CFG] [KEY VALUE ...]
# Zero-shot CLIP on the test set of a dataset, with CoOp's YAML CFG (vit_b16) and no training. Options
# `DATASET.SUBSAMPLE_CLASSES base` or `new` take half of the classes. Environment: see scripts/common.sh.
TRAINER=CoOp
source "$(dirname "$0")/../common.sh"
[ $# -ge 1 ] || usage
dataset=$1
shift
if [ $# -gt 0 ] && [[ $1 != *.* ]]; then
    CFG=$1
    shift
fi
choose_cfg few_shot
check_names "$dataset" "$TRAINER" "$CFG"
folder=$OUT/ZeroshotCLIP/$CFG/$dataset
for option in "$@"; do
    case $option in base | new) folder=$folder/$option ;; esac
done
run_once "$folder" --trainer ZeroshotCLIP --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "configs/trainers/$TRAINER/$CFG.yaml" --eval-only "$@"
report "$folder"
