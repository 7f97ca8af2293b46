#!/usr/bin/env bash
# Train ATPrompt+CoOp on the base classes with seeds 1 to 5.
# bash scripts/coop/atp_base2new_train.sh DATASET [EPOCHS] [KEY VALUE ...]
# This is a script of ATPrompt's repository, with its settings.

ARGUMENTS="DATASET [EPOCHS]"
source "$(dirname "$0")/../start.sh"

NCTX=${NCTX:-2}
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in 1 2 3 4 5; do
    run python train.py --root "$DATA" --seed "$seed" --trainer ATPrompt+CoOp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/ATPrompt+CoOp/$cfg.yaml" \
        --output-dir "$OUT/base2new/train_base/$DATASET/shots_$shots/ATPrompt+CoOp/$cfg/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
        TRAINER.COOP.N_CTX "$NCTX" \
        TRAINER.COOP.N_ATT "$NCTX" \
        TRAINER.COOP.CSC False \
        TRAINER.COOP.CLASS_TOKEN_POSITION end \
        OPTIM.MAX_EPOCH 100 \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
