#!/usr/bin/env bash
# xd_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test PromptSRC's prompts, learned by xd_train.sh, on all classes of another dataset.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=PromptSRC DEFAULT_CFG=vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets
exec bash "$(dirname "$0")/../xd.sh" test "$@"
