#!/usr/bin/env bash
# Test the trained prompts on the new classes.
# bash scripts/base2new_test_coprompt.sh DATASET SEED EXP_NAME EPOCHS [KEY VALUE ...]
# This is a script of CoPrompt's repository, with its settings.

ARGUMENTS="DATASET SEED EXP_NAME EPOCHS"
source "$(dirname "$0")/start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-coprompt}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
epoch=${EPOCHS:-}
for seed in $SEED; do
    trained=$OUT/$EXP_NAME/train_base/$DATASET/shots_$shots/CoPrompt/$cfg/seed$seed
    tested=$OUT/$EXP_NAME/test_new/$DATASET/shots_$shots/CoPrompt/$cfg/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer CoPrompt \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/CoPrompt/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new "$@"
    harmonic_mean "$trained" "$tested"
done
