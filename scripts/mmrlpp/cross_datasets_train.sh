#!/usr/bin/env bash
# Train on all classes of the source dataset.
# bash scripts/mmrlpp/cross_datasets_train.sh [EPOCHS] [KEY VALUE ...]
# This is a script of MMRL's repository, with its settings.

ARGUMENTS="[EPOCHS]"
source "$(dirname "$0")/../start.sh"

DATASET=imagenet
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_cross_datasets}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
for seed in 1 2 3; do
    run python train.py --root "$DATA" --seed "$seed" --trainer MMRLpp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMRLpp/$cfg.yaml" \
        --output-dir "$OUT/crossdataset/$DATASET/MMRLpp/${cfg}_${shots}shots/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
