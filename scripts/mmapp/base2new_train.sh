#!/usr/bin/env bash
# Train on the base classes and test on them.
# bash scripts/mmapp/base2new_train.sh DATASET SEED CFG [EPOCHS] [KEY VALUE ...]
# This is a script of MMApp's repository, with its settings.

ARGUMENTS="DATASET SEED CFG [EPOCHS]"
NOTE="its repository has sentences of its own: give DATASET.SENTENCES FILE"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=$CFG
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer MMApp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMApp/$cfg.yaml" \
        --output-dir "$OUT/base2new/train_base/$DATASET/shots_$shots/MMApp/$cfg/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
