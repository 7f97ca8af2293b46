#!/usr/bin/env bash
# base2new.sh train|test DATASET SEED [EPOCHS] [KEY VALUE ...], with TRAINER and CFG in the environment
# Base-to-new generalisation of any method: `train` learns prompts on the base classes and tests on them, `test` tests
# the learned prompts on the new classes. Called by scripts/<method>/base2new_{train,test}.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 3 ] || usage "${BASH_SOURCE[0]}"
half=$1 dataset=$2 seed=$3
split_options "${@:4}"

base_run=$OUT/base2new/train_base/$dataset/shots_$SHOTS/$TRAINER/$CFG/seed$seed
new_run=$OUT/base2new/test_new/$dataset/shots_$SHOTS/$TRAINER/$CFG/seed$seed
common=(--seed "$seed" --trainer "$TRAINER"
    --dataset-config-file "configs/datasets/$dataset.yaml" --config-file "configs/trainers/$TRAINER/$CFG.yaml")

if [ "$half" = train ]; then
    run_once "$base_run" "${common[@]}" DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES base \
        ${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"} ${OPTIONS[@]+"${OPTIONS[@]}"}
    "$PYTHON" -m tools.base2new "$base_run"
else
    [ -d "$base_run" ] || fail "no trained prompts in $base_run: run scripts/.../base2new_train.sh $dataset $seed first"
    run_once "$new_run" "${common[@]}" --eval-only --model-dir "$base_run" ${EPOCHS:+--load-epoch "$EPOCHS"} \
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES new ${OPTIONS[@]+"${OPTIONS[@]}"}
    "$PYTHON" -m tools.base2new "$base_run" "$new_run"
fi
