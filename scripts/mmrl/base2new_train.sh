#!/usr/bin/env bash
# Train on the base classes and test on them.
# bash scripts/mmrl/base2new_train.sh DATASET [EPOCHS] [KEY VALUE ...]
# This is a script of MMRL's repository, with its settings.

ARGUMENTS="DATASET [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
case $DATASET in
    imagenet) cfg=${CFG:-vit_b16_imagenet} ;;
    *) cfg=${CFG:-vit_b16} ;;
esac
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in 1 2 3; do
    run python train.py --root "$DATA" --seed "$seed" --trainer MMRL \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMRL/$cfg.yaml" \
        --output-dir "$OUT/base2new/train_base/$DATASET/shots_$shots/MMRL/$cfg/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
