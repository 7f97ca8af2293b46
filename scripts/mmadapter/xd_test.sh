#!/usr/bin/env bash
# Test prompts of the dataset SOURCE on another.
# bash scripts/mmadapter/xd_test.sh DATASET SEED CFG EPOCHS [KEY VALUE ...]
# This is a script of MMA's repository, with its settings.

ARGUMENTS="DATASET SEED CFG EPOCHS"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
shots=${SHOTS:-16}
cfg=$CFG
epoch=${EPOCHS:-}
for seed in $SEED; do
    trained=$OUT/crossdataset/$SOURCE/MMA/${cfg}_${shots}shots/seed$seed
    tested=$OUT/crossdataset/evaluation/$DATASET/MMA/${cfg}_${shots}shots/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer MMA \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMA/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" "$@"
done
