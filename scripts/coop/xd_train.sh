#!/usr/bin/env bash
# xd_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn CoOp's prompts on all classes of the source dataset (imagenet, in the paper).
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=CoOp DEFAULT_CFG=vit_b16_ep50_ctxv1
exec bash "$(dirname "$0")/../xd.sh" train "$@"
