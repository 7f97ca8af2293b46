#!/usr/bin/env bash
# Train on the base classes and test on them.
# bash scripts/language-prompting/base2new_train_lp.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of MaPLe's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_c2_ep5_batch4_4ctx_language_only}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer IVLP \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/IVLP/$cfg.yaml" \
        --output-dir "$OUT/base2new/train_base/$DATASET/shots_$shots/IVLP/$cfg/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
