#!/usr/bin/env bash
# Train on all classes of the source dataset.
# bash scripts/any/xd_train.sh METHOD DATASET SEED [EPOCHS] [KEY VALUE ...]

ARGUMENTS="METHOD DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
recipe cross_dataset "$DATASET" "$shots"
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer "$METHOD" \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "$yaml" \
        --output-dir "$OUT/crossdataset/$DATASET/$METHOD/${cfg}_${shots}shots/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        $settings \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
