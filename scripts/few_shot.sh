#!/usr/bin/env bash
# The body of scripts/<method>/few_shot.sh: few_shot.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# SHOTS may name some of the numbers of shots: SHOTS="4 8".
all_shots=${SHOTS:-1 2 4 8 16}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_arguments "$@"

runs=()
for shots in $all_shots; do
    runs+=("$OUT/$dataset/$TRAINER/${CFG}_${shots}shots/seed$seed")
    train "${runs[-1]}" DATASET.NUM_SHOTS "$shots"
done
report "${runs[@]}"
