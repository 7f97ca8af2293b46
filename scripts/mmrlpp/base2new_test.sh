#!/usr/bin/env bash
# Test the trained prompts on the new classes.
# bash scripts/mmrlpp/base2new_test.sh DATASET [EPOCHS] [KEY VALUE ...]
# This is a script of MMRL's repository, with its settings.

ARGUMENTS="DATASET [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
case $DATASET in
    imagenet) cfg=${CFG:-vit_b16_imagenet} ;;
    *) cfg=${CFG:-vit_b16} ;;
esac
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
epoch=${EPOCHS:-}
for seed in 1 2 3; do
    trained=$OUT/base2new/train_base/$DATASET/shots_$shots/MMRLpp/$cfg/seed$seed
    tested=$OUT/base2new/test_new/$DATASET/shots_$shots/MMRLpp/$cfg/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer MMRLpp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMRLpp/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new "$@"
    harmonic_mean "$trained" "$tested"
done
