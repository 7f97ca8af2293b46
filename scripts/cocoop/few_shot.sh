#!/usr/bin/env bash
# few_shot.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn CoCoOp's prompts on all classes from 1, 2, 4, 8 and 16 images of each, and test them.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=CoCoOp DEFAULT_CFG=vit_b16_c4_ep10_batch1_ctxv1
exec bash "$(dirname "$0")/../few_shot.sh" "$@"
