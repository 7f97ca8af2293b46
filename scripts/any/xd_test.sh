#!/usr/bin/env bash
# Test prompts of the dataset SOURCE on another.
# bash scripts/any/xd_test.sh METHOD DATASET SEED [EPOCHS] [KEY VALUE ...]

ARGUMENTS="METHOD DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
shots=${SHOTS:-16}
recipe cross_dataset "$SOURCE" "$shots"
epoch=${EPOCHS:-}
for seed in $SEED; do
    trained=$OUT/crossdataset/$SOURCE/$METHOD/${cfg}_${shots}shots/seed$seed
    tested=$OUT/crossdataset/evaluation/$DATASET/$METHOD/${cfg}_${shots}shots/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer "$METHOD" \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "$yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        $settings "$@"
done
