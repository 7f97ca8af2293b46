#!/usr/bin/env bash
# base2new_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn VPT's prompts on the base classes of a dataset and test them there.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=VPT DEFAULT_CFG=vit_b16_c2_ep5_batch4_4
exec bash "$(dirname "$0")/../base2new.sh" train "$@"
