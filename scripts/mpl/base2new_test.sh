#!/usr/bin/env bash
# base2new_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test MPL's prompts, learned by base2new_train.sh, on the new classes of the dataset.
# Environment: DATA, OUT, BACKBONE, SHOTS, CFG (scripts/common.sh).
export TRAINER=MPL CFG=${CFG:-vit_b4_c1_add2_rm1}
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ $# -ge 2 ] || usage "${BASH_SOURCE[0]}"
exec bash scripts/base2new.sh test "$@"
