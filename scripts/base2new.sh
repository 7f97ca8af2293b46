#!/usr/bin/env bash
# The body of scripts/<method>/base2new_{train,test}.sh: base2new.sh train|test DATASET SEED [EPOCHS] [KEY VALUE ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_arguments "${@:2}"

run=$dataset/shots_$SHOTS/$TRAINER/$CFG/seed$seed
base=$OUT/base2new/train_base/$run
new=$OUT/base2new/test_new/$run
case $1 in
    train)
        train "$base" DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES base
        report "$base"
        ;;
    test)
        evaluate "$new" "$base" DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES new
        report "$base" "$new"
        ;;
esac
