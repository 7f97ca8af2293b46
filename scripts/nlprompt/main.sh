#!/usr/bin/env bash
# Few-shot learning with wrong labels; the dataset knows its number of classes (CLASS is not used).
# bash scripts/nlprompt/main.sh DATASET SHOTS RATE TYPE CLASS [EPOCHS] [KEY VALUE ...]
# This is a script of NLPrompt's repository, with its settings.

ARGUMENTS="DATASET SHOTS RATE TYPE CLASS [EPOCHS]"
source "$(dirname "$0")/../start.sh"

cfg=${CFG:-rn50}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in 1; do
    for shots in $SHOTS; do
        run python train.py --root "$DATA" --seed "$seed" --trainer NLPrompt \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/NLPrompt/$cfg.yaml" \
            --output-dir "$OUT/$DATASET/NLPrompt/${cfg}_${shots}shots/noise_${TYPE}_$RATE/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" \
            DATASET.NOISE_RATE "$RATE" \
            DATASET.NOISE_TYPE "$TYPE" \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
    done
done
