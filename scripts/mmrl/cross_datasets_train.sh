#!/usr/bin/env bash
# Train on all classes of the source dataset.
# bash scripts/mmrl/cross_datasets_train.sh [EPOCHS] [KEY VALUE ...]
# This is a script of MMRL's repository, with its settings.

ARGUMENTS="[EPOCHS]"
source "$(dirname "$0")/../start.sh"

DATASET=imagenet
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_cross_datasets}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
settings="TRAINER.MMRL.REG_WEIGHT 0.2 TRAINER.MMRL.REP_DIM 512"
if [ "$cfg" != vit_b16_cross_datasets ]; then settings=; fi
for seed in 1 2 3; do
    run python train.py --root "$DATA" --seed "$seed" --trainer MMRL \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMRL/$cfg.yaml" \
        --output-dir "$OUT/crossdataset/$DATASET/MMRL/${cfg}_${shots}shots/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        $settings \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
