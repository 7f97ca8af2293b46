#!/usr/bin/env bash
# Test prompts of the dataset SOURCE on another.
# bash scripts/hicropl/xd_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of HiCroPL's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
NOTE="its repository has sentences of its own: give DATASET.SENTENCES FILE"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
shots=${SHOTS:-16}
cfg=${CFG:-vit_b16_c2_ep5_batch32_2ctx_cross_datasets}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
epoch=${EPOCHS:-}
if [ "$cfg" = vit_b16_c2_ep5_batch32_2ctx_cross_datasets ]; then epoch=${EPOCHS:-5}; fi
for seed in $SEED; do
    trained=$OUT/crossdataset/$SOURCE/HiCroPL/${cfg}_${shots}shots/seed$seed
    tested=$OUT/crossdataset/evaluation/$DATASET/HiCroPL/${cfg}_${shots}shots/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer HiCroPL \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/HiCroPL/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" "$@"
done
