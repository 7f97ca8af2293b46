#!/usr/bin/env bash
# base2new_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test PromptSRC's prompts, learned by base2new_train.sh, on the new classes of the dataset.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=PromptSRC DEFAULT_CFG=vit_b16_c2_ep20_batch4_4+4ctx
exec bash "$(dirname "$0")/../base2new.sh" test "$@"
