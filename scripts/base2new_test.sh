#!/usr/bin/env bash
# base2new_test.sh METHOD DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test a method's prompts, learned by base2new_train.sh, on the new classes of the dataset.
# METHOD is the name of a folder in configs/trainers/, SEED can be several: "1 2 3". Environment: see scripts/common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_call base2new "$@"

run=$dataset/shots_$SHOTS/$TRAINER/$CFG/seed$seed
base=$OUT/base2new/train_base/$run
new=$OUT/base2new/test_new/$run
evaluate "$new" "$base" DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES new
report "$base" "$new"
