#!/usr/bin/env bash
# few_shot.sh METHOD DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn a method's prompts on all classes from 1, 2, 4, 8 and 16 images of each, and test them.
# METHOD is the name of a folder in configs/trainers/, SEED can be several: "1 2 3". Environment: see scripts/common.sh;
# SHOTS can be a list: "4 8".
all_shots=${SHOTS:-1 2 4 8 16}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_call few_shot "$@"

added=configs/trainers/$TRAINER/few_shot_options # options of the method for some datasets
look_up "$added" "$dataset" || look_up "$added" "*" || words=()
options=(${words[@]+"${words[@]}"} ${options[@]+"${options[@]}"}) # the last one counts

runs=()
for shots in $all_shots; do
    folder=$OUT/$dataset/$TRAINER/${CFG}_${shots}shots/seed$seed
    runs+=("$folder")
    train "$folder" DATASET.NUM_SHOTS "$shots"
done
report "${runs[@]}"
