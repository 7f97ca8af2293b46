#!/usr/bin/env bash
# base2new_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn CoCoOp's prompts on the base classes of a dataset and test them there.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=CoCoOp DEFAULT_CFG=vit_b16_c4_ep10_batch1_ctxv1
exec bash "$(dirname "$0")/../base2new.sh" train "$@"
