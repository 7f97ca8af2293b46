#!/usr/bin/env bash
# Train on all classes.
# bash scripts/mpl/dev_train.sh DATASET SEED EPOCHS [KEY VALUE ...]
# This is a script of MPL's repository, with its settings.

ARGUMENTS="DATASET SEED EPOCHS"
NOTE="the authors' repository has no vit_b4_c1_add2_rm1_dev.yaml either: CFG names another one"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-vit_b4_c1_add2_rm1_dev}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer MPL \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MPL/$cfg.yaml" \
        --output-dir "$OUT/$DATASET/MPL/${cfg}_${shots}shots/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
