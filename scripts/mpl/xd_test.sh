#!/usr/bin/env bash
# xd_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test MPL's prompts, learned by xd_train.sh, on all classes of another dataset.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=MPL DEFAULT_CFG=vit_b4_c1_add2_rm1_cross_datasets
exec bash "$(dirname "$0")/../xd.sh" test "$@"
