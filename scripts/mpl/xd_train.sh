#!/usr/bin/env bash
# xd_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn MPL's prompts on all classes of the source dataset (imagenet, in the paper).
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=MPL DEFAULT_CFG=vit_b4_c1_add2_rm1_cross_datasets
exec bash "$(dirname "$0")/../xd.sh" train "$@"
