#!/usr/bin/env bash
# Train on all classes of the dataset SOURCE.
# bash scripts/cocoop/xd_train.sh SEED [EPOCHS] [KEY VALUE ...]
# This is a script of CoOp's repository, with its settings.

ARGUMENTS="SEED [EPOCHS]"
NOTE="trains on SOURCE (imagenet), as CoOp's script; with DATASET SEED: scripts/any/xd_train.sh CoCoOp"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
DATASET=$SOURCE
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_c4_ep10_batch1_ctxv1}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer CoCoOp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/CoCoOp/$cfg.yaml" \
        --output-dir "$OUT/crossdataset/$DATASET/CoCoOp/${cfg}_${shots}shots/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
