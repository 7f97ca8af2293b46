#!/usr/bin/env bash
# Test prompts of the dataset SOURCE on another.
# bash scripts/mmrlpp/cross_datasets_test.sh DATASET [EPOCHS] [KEY VALUE ...]
# This is a script of MMRL's repository, with its settings.

ARGUMENTS="DATASET [EPOCHS]"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_cross_datasets}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
epoch=${EPOCHS:-}
for seed in 1 2 3; do
    trained=$OUT/crossdataset/$SOURCE/MMRLpp/${cfg}_${shots}shots/seed$seed
    tested=$OUT/crossdataset/evaluation/$DATASET/MMRLpp/${cfg}_${shots}shots/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer MMRLpp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMRLpp/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" "$@"
done
