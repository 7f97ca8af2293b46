#!/usr/bin/env bash
# Test on a dataset the prompts that main.sh has trained on the dataset SOURCE.
# bash scripts/eval.sh DATASET CFG [EPOCHS] [KEY VALUE ...]
# This is a script of ProGrad's repository, with its settings.

ARGUMENTS="DATASET CFG [EPOCHS]"
source "$(dirname "$0")/start.sh"

NCTX=${NCTX:-16}
CSC=${CSC:-False}
CTP=${CTP:-end}
SOURCE=${SOURCE:-imagenet}
shots=${SHOTS:-4}
cfg=$CFG
epoch=${EPOCHS:-}
case $cfg in small*) ;; *) epoch=${EPOCHS:-50} ;; esac
for seed in 1 2 3; do
    trained=$OUT/$SOURCE/CoOp/${cfg}_${shots}shots/nctx${NCTX}_csc${CSC}_ctp$CTP/seed$seed
    tested=$OUT/evaluation/CoOp/${cfg}_${shots}shots/nctx${NCTX}_csc${CSC}_ctp$CTP/$DATASET/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer CoOp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/CoOp/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        TRAINER.COOP.N_CTX "$NCTX" \
        TRAINER.COOP.CSC "$CSC" \
        TRAINER.COOP.CLASS_TOKEN_POSITION "$CTP" "$@"
done
