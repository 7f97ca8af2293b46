#!/usr/bin/env bash
# Test the trained prompts on the new classes.
# bash scripts/mmapp/base2new_test.sh DATASET SEED CFG EPOCHS [KEY VALUE ...]
# This is a script of MMApp's repository, with its settings.

ARGUMENTS="DATASET SEED CFG EPOCHS"
NOTE="its repository has sentences of its own: give DATASET.SENTENCES FILE"
source "$(dirname "$0")/../start.sh"

shots=${SHOTS:-16}
cfg=$CFG
epoch=${EPOCHS:-}
for seed in $SEED; do
    trained=$OUT/base2new/train_base/$DATASET/shots_$shots/MMApp/$cfg/seed$seed
    tested=$OUT/base2new/test_new/$DATASET/shots_$shots/MMApp/$cfg/seed$seed
    check_finished "$trained"
    run python train.py --root "$DATA" --seed "$seed" --trainer MMApp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMApp/$cfg.yaml" \
        --output-dir "$tested" --eval-only --model-dir "$trained" \
        ${epoch:+--load-epoch "$epoch"} \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new "$@"
    harmonic_mean "$trained" "$tested"
done
