#!/usr/bin/env bash
# Train KgCoOp on all classes of eleven datasets, from 4 images of each class. For other methods: scripts/any/.
# bash scripts/xd_train.sh [EPOCHS] [KEY VALUE ...]
# This is a script of KgCoOp's repository, with its settings.

ARGUMENTS="[EPOCHS]"
source "$(dirname "$0")/start.sh"

NCTX=${NCTX:-4}
CSC=${CSC:-False}
CTP=${CTP:-end}
shots=${SHOTS:-4}
cfg=${CFG:-vit_b16_ep100_ctxv1}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for DATASET in dtd eurosat fgvc_aircraft food101 oxford_flowers oxford_pets stanford_cars ucf101 caltech101 sun397 imagenet; do
    for seed in 1 2 3; do
        run python train.py --root "$DATA" --seed "$seed" --trainer KgCoOp \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/KgCoOp/$cfg.yaml" \
            --output-dir "$OUT/$DATASET/KgCoOp/${cfg}_${shots}shots/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" \
            TRAINER.COOP.N_CTX "$NCTX" \
            TRAINER.COOP.CSC "$CSC" \
            TRAINER.COOP.CLASS_TOKEN_POSITION "$CTP" \
            TRAINER.COOP.W 8.0 \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
    done
done
