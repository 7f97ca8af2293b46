#!/usr/bin/env bash
# Train on 1, 2, 4, 8 and 16 images of each class.
# bash scripts/mpl/few_shot.sh DATASET SEED [EPOCHS] [KEY VALUE ...]

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

cfg=${CFG:-vit_b4_c1_add2_rm1}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in $SEED; do
    for shots in ${SHOTS:-1 2 4 8 16}; do
        run python train.py --root "$DATA" --seed "$seed" --trainer MPL \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/MPL/$cfg.yaml" \
            --output-dir "$OUT/$DATASET/MPL/${cfg}_${shots}shots/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
    done
done
