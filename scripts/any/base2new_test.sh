#!/usr/bin/env bash
# Test the trained prompts on the new classes.
# bash scripts/any/base2new_test.sh METHOD DATASET SEED [EPOCHS] [KEY VALUE ...]

ARGUMENTS="METHOD DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
recipe base2new "$DATASET" "$shots"
epoch=${EPOCHS:-}
for seed in $SEED; do
    trained=$OUT/base2new/train_base/$DATASET/shots_$shots/$METHOD/$cfg/seed$seed
    tested=$OUT/base2new/test_new/$DATASET/shots_$shots/$METHOD/$cfg/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer "$METHOD" \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "$yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new \
        $settings "$@"
    harmonic_mean "$trained" "$tested"
done
