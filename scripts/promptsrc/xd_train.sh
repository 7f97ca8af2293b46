#!/usr/bin/env bash
# xd_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn PromptSRC's prompts on all classes of the source dataset (imagenet, in the paper).
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=PromptSRC DEFAULT_CFG=vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets
exec bash "$(dirname "$0")/../xd.sh" train "$@"
