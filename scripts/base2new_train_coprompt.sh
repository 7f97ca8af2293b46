#!/usr/bin/env bash
# Train on the base classes and test on them.
# bash scripts/base2new_train_coprompt.sh DATASET SEED EXP_NAME [EPOCHS] [KEY VALUE ...]
# This is a script of CoPrompt's repository, with its settings.

ARGUMENTS="DATASET SEED EXP_NAME [EPOCHS]"
source "$(dirname "$0")/start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-coprompt}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer CoPrompt \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/CoPrompt/$cfg.yaml" \
        --output-dir "$OUT/$EXP_NAME/train_base/$DATASET/shots_$shots/CoPrompt/$cfg/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
