#!/usr/bin/env bash
# zeroshot.sh DATASET [CFG] [KEY VALUE ...]
# Zero-shot CLIP on the test set of a dataset, with CoOp's YAML CFG (vit_b16) and no training. Options
# `DATASET.SUBSAMPLE_CLASSES base` or `new` take half of the classes. Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") DEFAULT_CFG=vit_b16
source "$(dirname "$0")/../common.sh"
[ $# -ge 1 ] || usage
dataset=$1 cfg=$CFG
shift
if [ $# -gt 0 ] && [[ $1 != *.* ]]; then
    cfg=$1
    shift
fi
check_names "$dataset" CoOp "$cfg"
folder=$OUT/ZeroshotCLIP/$cfg/$dataset
for option in "$@"; do
    case $option in base | new) folder=$folder/$option ;; esac
done
run_once "$folder" --trainer ZeroshotCLIP --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "configs/trainers/CoOp/$cfg.yaml" --eval-only "$@"
report "$folder"
