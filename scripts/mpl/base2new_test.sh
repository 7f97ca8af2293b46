#!/usr/bin/env bash
# base2new_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test MPL's prompts, learned by base2new_train.sh, on the new classes of the dataset.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=MPL DEFAULT_CFG=vit_b4_c1_add2_rm1
exec bash "$(dirname "$0")/../base2new.sh" test "$@"
