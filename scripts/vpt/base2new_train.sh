#!/usr/bin/env bash
# Train on the base classes and test on them.
# bash scripts/vpt/base2new_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_c2_ep5_batch4_4}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer VPT \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/VPT/$cfg.yaml" \
        --output-dir "$OUT/base2new/train_base/$DATASET/shots_$shots/VPT/$cfg/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
