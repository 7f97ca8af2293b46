#!/usr/bin/env bash
# xd_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test IVLP's prompts, learned by xd_train.sh, on all classes of another dataset.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=IVLP DEFAULT_CFG=vit_b16_c2_ep5_batch4_2+2ctx
exec bash "$(dirname "$0")/../xd.sh" test "$@"
