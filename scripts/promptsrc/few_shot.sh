#!/usr/bin/env bash
# few_shot.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn PromptSRC's prompts on all classes from 1, 2, 4, 8 and 16 images of each, and test them.
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../few_shot.sh" PromptSRC "$@"
