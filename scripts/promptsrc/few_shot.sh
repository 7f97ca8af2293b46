#!/usr/bin/env bash
# Few-shot learning on all classes with seeds 1, 2, 3.
# bash scripts/promptsrc/few_shot.sh DATASET SHOTS [EPOCHS] [KEY VALUE ...]
# This is a script of PromptSRC's repository, with its settings.

ARGUMENTS="DATASET SHOTS [EPOCHS]"
NOTE="seeds 1, 2, 3, as PromptSRC's script; with DATASET SEED: scripts/any/few_shot.sh PromptSRC"
source "$(dirname "$0")/../start.sh"

cfg=${CFG:-vit_b16_c2_ep50_batch4_4+4ctx_few_shot}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
settings="TRAINER.PROMPTSRC.GPA_MEAN 45 TRAINER.PROMPTSRC.GPA_STD 5"
case $DATASET in imagenet | caltech101 | oxford_pets | food101 | ucf101 | sun397) settings= ;; esac
if [ "$cfg" != vit_b16_c2_ep50_batch4_4+4ctx_few_shot ]; then settings=; fi
for seed in 1 2 3; do
    for shots in $SHOTS; do
        run python train.py --root "$DATA" --seed "$seed" --trainer PromptSRC \
            --dataset-config-file "configs/datasets/$DATASET.yaml" \
            --config-file "configs/trainers/PromptSRC/$cfg.yaml" \
            --output-dir "$OUT/$DATASET/PromptSRC/${cfg}_${shots}shots/seed$seed" \
            "${OPTIONS[@]}" \
            DATASET.NUM_SHOTS "$shots" \
            $settings \
            ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
    done
done
