#!/usr/bin/env bash
# Train on all classes of the source dataset.
# bash scripts/independent-vlp/xd_train_ivlp.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of MaPLe's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_c2_ep5_batch4_2+2ctx}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer IVLP \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/IVLP/$cfg.yaml" \
        --output-dir "$OUT/crossdataset/$DATASET/IVLP/${cfg}_${shots}shots/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        TRAIN.CHECKPOINT_FREQ 2 \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
