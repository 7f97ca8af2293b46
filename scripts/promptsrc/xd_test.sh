#!/usr/bin/env bash
# Test prompts of the dataset SOURCE on another.
# bash scripts/promptsrc/xd_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of PromptSRC's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
epoch=${EPOCHS:-}
if [ "$cfg" = vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets ]; then epoch=${EPOCHS:-20}; fi
for seed in $SEED; do
    trained=$OUT/crossdataset/$SOURCE/PromptSRC/${cfg}_${shots}shots/seed$seed
    tested=$OUT/crossdataset/evaluation/$DATASET/PromptSRC/${cfg}_${shots}shots/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer PromptSRC \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/PromptSRC/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" "$@"
done
