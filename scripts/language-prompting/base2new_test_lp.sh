#!/usr/bin/env bash
# base2new_test_lp.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# The published name of: scripts/base2new_test.sh IVLP DATASET SEED [EPOCHS] [KEY VALUE ...]
# Environment: see scripts/common.sh.
CFG=${CFG:-vit_b16_c2_ep5_batch4_4ctx_language_only}
source "$(dirname "$0")/../base2new_test.sh" IVLP "$@"
