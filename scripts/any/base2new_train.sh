#!/usr/bin/env bash
# Train on the base classes and test on them.
# bash scripts/any/base2new_train.sh METHOD DATASET SEED [EPOCHS] [KEY VALUE ...]

ARGUMENTS="METHOD DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
recipe base2new "$DATASET" "$shots"
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer "$METHOD" \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "$yaml" \
        --output-dir "$OUT/base2new/train_base/$DATASET/shots_$shots/$METHOD/$cfg/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
        $settings \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
