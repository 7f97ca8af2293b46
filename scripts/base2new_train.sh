#!/usr/bin/env bash
# base2new_train.sh METHOD DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn a method's prompts on the base classes of a dataset and test them there.
# METHOD is the name of a folder in configs/trainers/, SEED can be several: "1 2 3". Environment: see scripts/common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_call base2new "$@"

base=$OUT/base2new/train_base/$dataset/shots_$SHOTS/$TRAINER/$CFG/seed$seed
train "$base" DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES base
report "$base"
