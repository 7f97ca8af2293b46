#!/usr/bin/env bash
# xd_train_maple.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# The published name of: scripts/xd_train.sh MaPLe DATASET SEED [EPOCHS] [KEY VALUE ...]
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../xd_train.sh" MaPLe "$@"
