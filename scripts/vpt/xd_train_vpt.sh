#!/usr/bin/env bash
# Train on all classes of the source dataset.
# bash scripts/vpt/xd_train_vpt.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of MaPLe's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_c2_ep5_batch4_4}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer VPT \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/VPT/$cfg.yaml" \
        --output-dir "$OUT/crossdataset/$DATASET/VPT/${cfg}_${shots}shots/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        TRAIN.CHECKPOINT_FREQ 2 \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
