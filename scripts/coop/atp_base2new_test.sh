#!/usr/bin/env bash
# Test its prompts on the new classes.
# bash scripts/coop/atp_base2new_test.sh DATASET [EPOCHS] [KEY VALUE ...]
# This is a script of ATPrompt's repository, with its settings.

ARGUMENTS="DATASET [EPOCHS]"
source "$(dirname "$0")/../start.sh"

NCTX=${NCTX:-2}
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
epoch=${EPOCHS:-}
if [ "$cfg" = vit_b16 ]; then epoch=${EPOCHS:-100}; fi
for seed in 1 2 3 4 5; do
    trained=$OUT/base2new/train_base/$DATASET/shots_$shots/ATPrompt+CoOp/$cfg/seed$seed
    tested=$OUT/base2new/test_new/$DATASET/shots_$shots/ATPrompt+CoOp/$cfg/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer ATPrompt+CoOp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/ATPrompt+CoOp/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new \
        TRAINER.COOP.N_CTX "$NCTX" \
        TRAINER.COOP.N_ATT "$NCTX" \
        TRAINER.COOP.CSC False \
        TRAINER.COOP.CLASS_TOKEN_POSITION end "$@"
    harmonic_mean "$trained" "$tested"
done
