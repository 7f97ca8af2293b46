#!/usr/bin/env bash
# few_shot.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn MaPLe's prompts on all classes from 1, 2, 4, 8 and 16 images of each, and test them.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=MaPLe DEFAULT_CFG=vit_b16_c2_ep5_batch4_2ctx
exec bash "$(dirname "$0")/../few_shot.sh" "$@"
