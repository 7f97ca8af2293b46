#!/usr/bin/env bash
# Train on the base classes and test on them.
# bash scripts/base2new_train_prograd.sh DATASET [EPOCHS] [KEY VALUE ...]
# This is a script of ProGrad's repository, with its settings.

ARGUMENTS="DATASET [EPOCHS]"
source "$(dirname "$0")/start.sh"

NCTX=${NCTX:-16}
CSC=${CSC:-False}
CTP=${CTP:-end}
shots=${SHOTS:-4}
cfg=${CFG:-rn50_ep100}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in 1 2 3; do
    run python train.py --root "$DATA" --seed "$seed" --trainer ProGrad \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/ProGrad/$cfg.yaml" \
        --output-dir "$OUT/base2new/train_base/$DATASET/shots_$shots/ProGrad/$cfg/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
        TRAINER.COOP.N_CTX "$NCTX" \
        TRAINER.COOP.CSC "$CSC" \
        TRAINER.COOP.CLASS_TOKEN_POSITION "$CTP" \
        LOSS.LAMBDA 1.0 \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
