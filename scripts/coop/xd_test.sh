#!/usr/bin/env bash
# xd_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test CoOp's prompts, learned by xd_train.sh, on all classes of another dataset.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=CoOp DEFAULT_CFG=vit_b16_ep50_ctxv1
exec bash "$(dirname "$0")/../xd.sh" test "$@"
