#!/usr/bin/env bash
# xd_test.sh METHOD DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test a method's prompts, learned by xd_train.sh on the dataset SOURCE (imagenet), on all classes of another dataset.
# METHOD is the name of a folder in configs/trainers/, SEED can be several: "1 2 3". Environment: see scripts/common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_call cross_dataset "$@"

SOURCE=${SOURCE:-imagenet}
run=$TRAINER/${CFG}_${SHOTS}shots/seed$seed
folder=$OUT/crossdataset/evaluation/$dataset/$run
[ "$SOURCE" != "$dataset" ] || echo "Source and target are both $dataset: a rehearsal, no cross-dataset result"
evaluate "$folder" "$OUT/crossdataset/$SOURCE/$run" DATASET.NUM_SHOTS "$SHOTS"
report "$folder"
