#!/usr/bin/env bash
# Test the prompts of dev_train.sh.
# bash scripts/mpl/dev_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# This is a script of MPL's repository, with its settings.

ARGUMENTS="DATASET SEED [EPOCHS]"
NOTE="the authors' repository has no vit_b4_c1_add2_rm1_dev.yaml either: CFG names another one"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=${CFG:-vit_b4_c1_add2_rm1_dev}
if [ "$BACKBONE" = small ]; then cfg=${CFG:-small}; fi
epoch=${EPOCHS:-}
if [ "$cfg" = vit_b4_c1_add2_rm1_dev ]; then epoch=${EPOCHS:-10}; fi
for seed in $SEED; do
    trained=$OUT/$DATASET/MPL/${cfg}_${shots}shots/seed$seed
    tested=$OUT/evaluation/$DATASET/MPL/${cfg}_${shots}shots/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer MPL \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MPL/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" "$@"
done
