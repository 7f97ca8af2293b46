#!/usr/bin/env bash
# Train on 1, 2, 4, 8 and 16 images of each class.
# bash scripts/mmrl/few_shot.sh DATASET [EPOCHS] [KEY VALUE ...]
# This is a script of MMRL's repository, with its settings.

ARGUMENTS="DATASET [EPOCHS]"
source "$(dirname "$0")/../start.sh"

case $DATASET in
    imagenet) cfg=${CFG:-vit_b16_imagenet} ;;
    *) cfg=${CFG:-vit_b16_few_shot} ;;
esac
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in 1 2 3; do
    for shots in ${SHOTS:-1 2 4 8 16}; do
        run python train.py --root "$DATA" --seed "$seed" --trainer MMRL \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/MMRL/$cfg.yaml" \
            --output-dir "$OUT/$DATASET/MMRL/${cfg}_${shots}shots/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
    done
done
