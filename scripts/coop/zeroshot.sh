#!/usr/bin/env bash
# Test zero-shot CLIP.
# bash scripts/coop/zeroshot.sh DATASET CFG [KEY VALUE ...]
# This is a script of CoOp's repository, with its settings.

ARGUMENTS="DATASET CFG"
source "$(dirname "$0")/../start.sh"

cfg=$CFG
folder=$OUT/ZeroshotCLIP/$cfg/$DATASET
case " $* " in
    *" base "*) folder=$folder/base ;;
    *" new "*) folder=$folder/new ;;
esac
run python train.py --root "$DATA" --trainer ZeroshotCLIP \
    --dataset-config-file "configs/datasets/$DATASET.yaml" \
    --config-file "configs/trainers/CoOp/$cfg.yaml" \
    --output-dir "$folder" --eval-only \
    "${OPTIONS[@]}" "$@"
