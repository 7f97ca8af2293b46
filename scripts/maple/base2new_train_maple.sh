#!/usr/bin/env bash
# base2new_train_maple.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# The published name of: scripts/base2new_train.sh MaPLe DATASET SEED [EPOCHS] [KEY VALUE ...]
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../base2new_train.sh" MaPLe "$@"
