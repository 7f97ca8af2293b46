#!/usr/bin/env bash
# Test prompts of the dataset SOURCE on another.
# bash scripts/mpl/xd_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of MPL's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
shots=${SHOTS:-16}
cfg=${CFG:-vit_b4_c1_add2_rm1}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small_cross_datasets}; fi
settings="OPTIM.MAX_EPOCH 2"
if [ "$cfg" != vit_b4_c1_add2_rm1 ]; then settings=; fi
epoch=${EPOCHS:-}
if [ "$cfg" = vit_b4_c1_add2_rm1 ]; then epoch=${EPOCHS:-2}; fi
for seed in $SEED; do
    trained=$OUT/crossdataset/$SOURCE/MPL/${cfg}_${shots}shots/seed$seed
    tested=$OUT/crossdataset/evaluation/$DATASET/MPL/${cfg}_${shots}shots/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer MPL \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MPL/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        $settings "$@"
done
