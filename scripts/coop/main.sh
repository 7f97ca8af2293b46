#!/usr/bin/env bash
# Few-shot learning on all classes with seeds 1, 2, 3.
# bash scripts/coop/main.sh DATASET CFG CTP NCTX SHOTS CSC [EPOCHS] [KEY VALUE ...]
# This is a script of CoOp's repository, with its settings.

ARGUMENTS="DATASET CFG CTP NCTX SHOTS CSC [EPOCHS]"
source "$(dirname "$0")/../start.sh"

cfg=$CFG
for seed in 1 2 3; do
    for shots in $SHOTS; do
        run python train.py --root "$DATA" --seed "$seed" --trainer CoOp \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/CoOp/$cfg.yaml" \
            --output-dir "$OUT/$DATASET/CoOp/${cfg}_${shots}shots/nctx${NCTX}_csc${CSC}_ctp$CTP/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" \
            TRAINER.COOP.N_CTX "$NCTX" \
            TRAINER.COOP.CSC "$CSC" \
            TRAINER.COOP.CLASS_TOKEN_POSITION "$CTP" \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
    done
done
