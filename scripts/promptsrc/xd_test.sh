#!/usr/bin/env bash
# xd_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test PromptSRC's prompts, learned by xd_train.sh, on all classes of another dataset.
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../xd_test.sh" PromptSRC "$@"
