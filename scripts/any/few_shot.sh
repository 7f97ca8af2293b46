#!/usr/bin/env bash
# Train on 1, 2, 4, 8 and 16 images of each class.
# bash scripts/any/few_shot.sh METHOD DATASET SEED [EPOCHS] [KEY VALUE ...]

ARGUMENTS="METHOD DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

for seed in $SEED; do
    for shots in ${SHOTS:-1 2 4 8 16}; do
        recipe few_shot "$DATASET" "$shots"
        run python train.py --root "$DATA" --seed "$seed" --trainer "$METHOD" \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "$yaml" \
            --output-dir "$OUT/$DATASET/$METHOD/${cfg}_${shots}shots/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" \
            $settings \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
    done
done
