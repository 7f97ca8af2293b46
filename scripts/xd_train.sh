#!/usr/bin/env bash
# xd_train.sh METHOD DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn a method's prompts on all classes of the source dataset (imagenet, in the papers).
# METHOD is the name of a folder in configs/trainers/, SEED can be several: "1 2 3". Environment: see scripts/common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_call cross_dataset "$@"

folder=$OUT/crossdataset/$dataset/$TRAINER/${CFG}_${SHOTS}shots/seed$seed
train "$folder" DATASET.NUM_SHOTS "$SHOTS"
report "$folder"
