#!/usr/bin/env bash
# base2new_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn MPL's prompts on the base classes of a dataset and test them there.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=MPL DEFAULT_CFG=vit_b4_c1_add2_rm1
exec bash "$(dirname "$0")/../base2new.sh" train "$@"
