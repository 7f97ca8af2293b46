#!/usr/bin/env bash
# base2new_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test PromptSRC's prompts, learned by base2new_train.sh, on the new classes of the dataset.
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../base2new_test.sh" PromptSRC "$@"
