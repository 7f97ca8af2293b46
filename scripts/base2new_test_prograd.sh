#!/usr/bin/env bash
# Test the trained prompts on the new classes.
# bash scripts/base2new_test_prograd.sh DATASET [EPOCHS] [KEY VALUE ...]
# This is a script of ProGrad's repository, with its settings.

ARGUMENTS="DATASET [EPOCHS]"
source "$(dirname "$0")/start.sh"

NCTX=${NCTX:-16}
CSC=${CSC:-False}
CTP=${CTP:-end}
shots=${SHOTS:-4}
cfg=${CFG:-rn50_ep100}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
epoch=${EPOCHS:-}
if [ "$cfg" = rn50_ep100 ]; then epoch=${EPOCHS:-100}; fi
for seed in 1 2 3; do
    trained=$OUT/base2new/train_base/$DATASET/shots_$shots/ProGrad/$cfg/seed$seed
    tested=$OUT/base2new/test_new/$DATASET/shots_$shots/ProGrad/$cfg/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer ProGrad \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/ProGrad/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new \
        TRAINER.COOP.N_CTX "$NCTX" \
        TRAINER.COOP.CSC "$CSC" \
        TRAINER.COOP.CLASS_TOKEN_POSITION "$CTP" \
        LOSS.LAMBDA 1.0 "$@"
    harmonic_mean "$trained" "$tested"
done
