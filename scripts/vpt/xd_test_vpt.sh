#!/usr/bin/env bash
# xd_test_vpt.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# The published name of: scripts/xd_test.sh VPT DATASET SEED [EPOCHS] [KEY VALUE ...]
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../xd_test.sh" VPT "$@"
