#!/usr/bin/env bash
# Train on the base classes and test on them.
# bash scripts/hicropl/base2new_train_hicropl.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of HiCroPL's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
NOTE="its repository has sentences of its own: give DATASET.SENTENCES FILE"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
case $DATASET in
    imagenet) cfg=${CFG:-vit_b16_c2_ep40_batch128_16ctx} ;;
    *) cfg=${CFG:-vit_b16_c2_ep50_batch32_16ctx} ;;
esac
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer HiCroPL \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/HiCroPL/$cfg.yaml" \
        --output-dir "$OUT/base2new/train_base/$DATASET/shots_$shots/HiCroPL/$cfg/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
