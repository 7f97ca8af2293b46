#!/usr/bin/env bash
# Test KgCoOp's trained prompts on the new classes. For other methods: scripts/any/.
# bash scripts/base2new_test.sh DATASET WEIGHT [EPOCHS] [KEY VALUE ...]
# This is a script of KgCoOp's repository, with its settings.

ARGUMENTS="DATASET WEIGHT [EPOCHS]"
source "$(dirname "$0")/start.sh"

NCTX=${NCTX:-4}
CSC=${CSC:-False}
CTP=${CTP:-end}
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_ep100_ctxv1}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
epoch=${EPOCHS:-}
if [ "$cfg" = vit_b16_ep100_ctxv1 ]; then epoch=${EPOCHS:-100}; fi
for seed in 1 2 3; do
    trained=$OUT/base2new/train_base/$DATASET/shots_${shots}_$WEIGHT/KgCoOp/$cfg/seed$seed
    tested=$OUT/base2new/test_new/$DATASET/shots_${shots}_$WEIGHT/KgCoOp/$cfg/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer KgCoOp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/KgCoOp/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new \
        TRAINER.COOP.N_CTX "$NCTX" \
        TRAINER.COOP.CSC "$CSC" \
        TRAINER.COOP.CLASS_TOKEN_POSITION "$CTP" \
        TRAINER.COOP.W "$WEIGHT" "$@"
    harmonic_mean "$trained" "$tested"
done
