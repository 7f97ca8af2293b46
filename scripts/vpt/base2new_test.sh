#!/usr/bin/env bash
# base2new_test.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Test VPT's prompts, learned by base2new_train.sh, on the new classes of the dataset.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=VPT DEFAULT_CFG=vit_b16_c2_ep5_batch4_4
exec bash "$(dirname "$0")/../base2new.sh" test "$@"
