#!/usr/bin/env bash
# Train on all classes of the source dataset.
# bash scripts/hicropl/xd_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of HiCroPL's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
NOTE="its repository has sentences of its own: give DATASET.SENTENCES FILE"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_c2_ep5_batch32_2ctx_cross_datasets}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer HiCroPL \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/HiCroPL/$cfg.yaml" \
        --output-dir "$OUT/crossdataset/$DATASET/HiCroPL/${cfg}_${shots}shots/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
