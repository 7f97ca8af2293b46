#!/usr/bin/env bash
# Test prompts of the dataset SOURCE on another.
# bash scripts/coop/xd_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_ep50_ctxv1}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
epoch=${EPOCHS:-}
for seed in $SEED; do
    trained=$OUT/crossdataset/$SOURCE/CoOp/${cfg}_${shots}shots/seed$seed
    tested=$OUT/crossdataset/evaluation/$DATASET/CoOp/${cfg}_${shots}shots/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer CoOp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/CoOp/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" "$@"
done
