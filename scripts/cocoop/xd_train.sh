#!/usr/bin/env bash
# xd_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn CoCoOp's prompts on all classes of the source dataset (imagenet, in the paper).
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=CoCoOp DEFAULT_CFG=vit_b16_c4_ep10_batch1_ctxv1
exec bash "$(dirname "$0")/../xd.sh" train "$@"
