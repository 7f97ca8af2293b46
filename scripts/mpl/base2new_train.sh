#!/usr/bin/env bash
# base2new_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn MPL's prompts on the base classes of a dataset and test them there.
# Environment: DATA, OUT, BACKBONE, SHOTS, CFG (scripts/common.sh).
export TRAINER=MPL CFG=${CFG:-vit_b4_c1_add2_rm1}
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ $# -ge 2 ] || usage "${BASH_SOURCE[0]}"
exec bash scripts/base2new.sh train "$@"
