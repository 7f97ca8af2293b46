#!/usr/bin/env bash
# Test prompts of the dataset SOURCE on another.
# bash scripts/mmapp/xd_test.sh DATASET SEED CFG EPOCHS [KEY VALUE ...]
# This is a script of MMApp's repository, with its settings.

ARGUMENTS="DATASET SEED CFG EPOCHS"
NOTE="its repository has sentences of its own: give DATASET.SENTENCES FILE"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
shots=${SHOTS:-16}
cfg=$CFG
epoch=${EPOCHS:-}
for seed in $SEED; do
    trained=$OUT/crossdataset/$SOURCE/MMApp/${cfg}_${shots}shots/seed$seed
    tested=$OUT/crossdataset/evaluation/$DATASET/MMApp/${cfg}_${shots}shots/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer MMApp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMApp/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" "$@"
done
