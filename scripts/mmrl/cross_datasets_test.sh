#!/usr/bin/env bash
# Test prompts of the dataset SOURCE on another.
# bash scripts/mmrl/cross_datasets_test.sh DATASET [EPOCHS] [KEY VALUE ...]
# This is a script of MMRL's repository, with its settings.

ARGUMENTS="DATASET [EPOCHS]"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_cross_datasets}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
settings="TRAINER.MMRL.REG_WEIGHT 0.2 TRAINER.MMRL.REP_DIM 512"
if [ "$cfg" != vit_b16_cross_datasets ]; then settings=; fi
epoch=${EPOCHS:-}
for seed in 1 2 3; do
    trained=$OUT/crossdataset/$SOURCE/MMRL/${cfg}_${shots}shots/seed$seed
    tested=$OUT/crossdataset/evaluation/$DATASET/MMRL/${cfg}_${shots}shots/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer MMRL \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMRL/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        $settings "$@"
done
