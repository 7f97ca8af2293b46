#!/usr/bin/env bash
# Train on all classes of the source dataset.
# bash scripts/mpl/xd_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of MPL's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-vit_b4_c1_add2_rm1}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
settings="OPTIM.MAX_EPOCH 2"
if [ "$cfg" != vit_b4_c1_add2_rm1 ]; then settings=; fi
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer MPL \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MPL/$cfg.yaml" \
        --output-dir "$OUT/crossdataset/$DATASET/MPL/${cfg}_${shots}shots/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        $settings \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
