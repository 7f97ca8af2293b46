#!/usr/bin/env bash
# Test the trained prompts on the new classes.
# bash scripts/vpt/base2new_test_vpt.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of MaPLe's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_c2_ep5_batch4_4}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
epoch=${EPOCHS:-}
if [ "$cfg" = vit_b16_c2_ep5_batch4_4 ]; then epoch=${EPOCHS:-5}; fi
for seed in $SEED; do
    trained=$OUT/base2new/train_base/$DATASET/shots_$shots/VPT/$cfg/seed$seed
    tested=$OUT/base2new/test_new/$DATASET/shots_$shots/VPT/$cfg/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer VPT \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/VPT/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new "$@"
    harmonic_mean "$trained" "$tested"
done
