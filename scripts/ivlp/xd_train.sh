#!/usr/bin/env bash
# xd_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn IVLP's prompts on all classes of the source dataset (imagenet, in the paper).
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=IVLP DEFAULT_CFG=vit_b16_c2_ep5_batch4_2+2ctx
exec bash "$(dirname "$0")/../xd.sh" train "$@"
