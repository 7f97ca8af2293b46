#!/usr/bin/env bash
# base2new_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn MaPLe's prompts on the base classes of a dataset and test them there.
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../base2new_train.sh" MaPLe "$@"
