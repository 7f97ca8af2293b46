#!/usr/bin/env bash
# base2new_test_ivlp.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# The published name of: scripts/base2new_test.sh IVLP DATASET SEED [EPOCHS] [KEY VALUE ...]
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../base2new_test.sh" IVLP "$@"
