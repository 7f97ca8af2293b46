#!/usr/bin/env bash
# Train on all classes of the dataset SOURCE.
# bash scripts/mmapp/xd_train.sh SEED CFG [EPOCHS] [KEY VALUE ...]
# This is a script of MMApp's repository, with its settings.

ARGUMENTS="SEED CFG [EPOCHS]"
NOTE="its repository has sentences of its own: give DATASET.SENTENCES FILE"
source "$(dirname "$0")/../start.sh"

SOURCE=${SOURCE:-imagenet}
DATASET=$SOURCE
shots=${SHOTS:-16}
cfg=$CFG
for seed in $SEED; do
    run python train.py --root "$DATA" --seed "$seed" --trainer MMApp \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/MMApp/$cfg.yaml" \
        --output-dir "$OUT/crossdataset/$DATASET/MMApp/${cfg}_${shots}shots/seed$seed" \
        "${OPTIONS[@]}" \
        DATASET.NUM_SHOTS "$shots" \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} "$@"
done
