#!/usr/bin/env bash
# Train KgCoOp on the base classes and test on them. For other methods: scripts/any/, scripts/tcp/.
# bash scripts/base2new_train.sh DATASET WEIGHT [EPOCHS] [KEY VALUE ...]
# This is a script of KgCoOp's repository, with its settings.

ARGUMENTS="DATASET WEIGHT [EPOCHS]"
source "$(dirname "$0")/start.sh"

NCTX=${NCTX:-4}
CSC=${CSC:-False}
CTP=${CTP:-end}
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_ep100_ctxv1}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in 1 2 3; do
    run python train.py --root "$DATA" --seed "$seed" --trainer KgCoOp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/KgCoOp/$cfg.yaml" \
        --output-dir "$OUT/base2new/train_base/$DATASET/shots_${shots}_$WEIGHT/KgCoOp/$cfg/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
        TRAINER.COOP.N_CTX "$NCTX" \
        TRAINER.COOP.CSC "$CSC" \
        TRAINER.COOP.CLASS_TOKEN_POSITION "$CTP" \
        TRAINER.COOP.W "$WEIGHT" \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
