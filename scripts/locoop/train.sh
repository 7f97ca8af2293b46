#!/usr/bin/env bash
# Few-shot learning on all classes with seeds 1, 2, 3.
# bash scripts/locoop/train.sh DATA DATASET CFG CTP NCTX SHOTS CSC LAMBDA TOPK [EPOCHS] [KEY VALUE ...]
# This is a script of LoCoOp's repository, with its settings.

ARGUMENTS="DATA DATASET CFG CTP NCTX SHOTS CSC LAMBDA TOPK [EPOCHS]"
source "$(dirname "$0")/../start.sh"

cfg=$CFG
for seed in 1 2 3; do
    for shots in $SHOTS; do
        run python train.py --root "$DATA" --seed "$seed" --trainer LoCoOp \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/LoCoOp/$cfg.yaml" \
            --output-dir "$OUT/$DATASET/LoCoOp/${cfg}_${shots}shots/nctx${NCTX}_csc${CSC}_ctp$CTP/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" \
            TRAINER.LOCOOP.N_CTX "$NCTX" \
            TRAINER.LOCOOP.CSC "$CSC" \
            TRAINER.LOCOOP.CLASS_TOKEN_POSITION "$CTP" \
            TRAINER.LOCOOP.LAMBDA "$LAMBDA" \
            TRAINER.LOCOOP.TOPK "$TOPK" \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
    done
done
