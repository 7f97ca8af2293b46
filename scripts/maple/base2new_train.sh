#!/usr/bin/env bash
# base2new_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn MaPLe's prompts on the base classes of a dataset and test them there.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=MaPLe DEFAULT_CFG=vit_b16_c2_ep5_batch4_2ctx
exec bash "$(dirname "$0")/../base2new.sh" train "$@"
