#!/usr/bin/env bash
# Train on 1, 2, 4, 8 and 16 images of each class.
# bash scripts/coop/few_shot.sh DATASET SEED [EPOCHS] [KEY VALUE ...]

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

for seed in $SEED; do
    for shots in ${SHOTS:-1 2 4 8 16}; do
        case $DATASET-$shots in
            imagenet-*) cfg=${CFG:-vit_b16_ep50} ;;
            *-1) cfg=${CFG:-vit_b16_ep50} ;;
            *-2 | *-4) cfg=${CFG:-vit_b16_ep100} ;;
            *) cfg=${CFG:-vit_b16} ;;
        esac
        if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
        run python train.py --root "$DATA" --seed "$seed" --trainer CoOp \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/CoOp/$cfg.yaml" \
            --output-dir "$OUT/$DATASET/CoOp/${cfg}_${shots}shots/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
    done
done
