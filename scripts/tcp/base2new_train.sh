#!/usr/bin/env bash
# Train TCP on the base classes of eleven datasets, and test it on their base and new classes.
# bash scripts/tcp/base2new_train.sh [EPOCHS] [KEY VALUE ...]
# This is a script of TCP's repository, with its settings.

ARGUMENTS="[EPOCHS]"
source "$(dirname "$0")/../start.sh"

NCTX=${NCTX:-4}
CSC=${CSC:-False}
CTP=${CTP:-end}
shots=${SHOTS:-16}
for DATASET in caltech101 dtd eurosat fgvc_aircraft food101 oxford_flowers oxford_pets stanford_cars ucf101 sun397 imagenet; do
    for seed in 1 2 3; do
        cfg=${CFG:-vit_b16_ep100_ctxv1}
        if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
        epoch=${EPOCHS:-}
        loadep=50
        case $DATASET in sun397 | imagenet) loadep=25 ;; esac
        if [ "$cfg" = vit_b16_ep100_ctxv1 ]; then epoch=${EPOCHS:-$loadep}; fi
        run python train.py --root "$DATA" --seed "$seed" --trainer TCP \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/TCP/$cfg.yaml" \
            --output-dir "$OUT/base2new/train_base/$DATASET/shots_$shots/TCP/$cfg/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
            TRAINER.COOP.N_CTX "$NCTX" \
            TRAINER.COOP.CSC "$CSC" \
            TRAINER.COOP.CLASS_TOKEN_POSITION "$CTP" \
            TRAINER.COOP.W 1.0 \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
        trained=$OUT/base2new/train_base/$DATASET/shots_$shots/TCP/$cfg/seed$seed
        tested=$OUT/base2new/test_new/$DATASET/shots_$shots/TCP/$cfg/seed$seed
        check_finished "$trained"
        run python train.py --root "$DATA" --seed "$seed" --trainer TCP \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/TCP/$cfg.yaml" \
            --output-dir "$tested" --eval-only --model-dir "$trained" \
            ${epoch:+--load-epoch "$epoch"} \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new \
            TRAINER.COOP.N_CTX "$NCTX" \
            TRAINER.COOP.CSC "$CSC" \
            TRAINER.COOP.CLASS_TOKEN_POSITION "$CTP" \
            TRAINER.COOP.W 1.0 "$@"
        harmonic_mean "$trained" "$tested"
    done
done
