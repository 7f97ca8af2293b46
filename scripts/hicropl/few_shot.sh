#!/usr/bin/env bash
# Few-shot learning on all classes with seeds 1, 2, 3.
# bash scripts/hicropl/few_shot.sh DATASET SHOTS [EPOCHS] [KEY VALUE ...]
# This is a script of HiCroPL's repository, with its settings.

ARGUMENTS="DATASET SHOTS [EPOCHS]"
NOTE="its repository has sentences of its own: give DATASET.SENTENCES FILE"
source "$(dirname "$0")/../start.sh"

cfg=${CFG:-vit_b16_c2_ep50_batch32_16ctx_few_shot}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
for seed in 1 2 3; do
    for shots in $SHOTS; do
        run python train.py --root "$DATA" --seed "$seed" --trainer HiCroPL \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/HiCroPL/$cfg.yaml" \
            --output-dir "$OUT/$DATASET/HiCroPL/${cfg}_${shots}shots/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
    done
done
