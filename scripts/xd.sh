#!/usr/bin/env bash
# The body of scripts/<method>/xd_{train,test}.sh: xd.sh train|test DATASET SEED [EPOCHS] [KEY VALUE ...]
# `test` takes the prompts that `train` learned on the dataset SOURCE (default imagenet).
SMALL_CFG=small_cross_datasets
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_arguments "${@:2}"

SOURCE=${SOURCE:-imagenet}
run=$TRAINER/${CFG}_${SHOTS}shots/seed$seed
case $1 in
    train)
        train "$OUT/crossdataset/$dataset/$run" DATASET.NUM_SHOTS "$SHOTS"
        report "$OUT/crossdataset/$dataset/$run"
        ;;
    test)
        [ "$SOURCE" != "$dataset" ] || echo "Source and target are both $dataset: a rehearsal, no cross-dataset result"
        evaluate "$OUT/crossdataset/evaluation/$dataset/$run" "$OUT/crossdataset/$SOURCE/$run" DATASET.NUM_SHOTS "$SHOTS"
        report "$OUT/crossdataset/evaluation/$dataset/$run"
        ;;
esac
