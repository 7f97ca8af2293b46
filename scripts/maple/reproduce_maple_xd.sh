#!/usr/bin/env bash
# reproduce_maple_xd.sh DATASET SEED WEIGHTS [OPTION ...]
# The published name of: scripts/reproduce.sh MaPLe cross_dataset DATASET SEED WEIGHTS [OPTION ...]
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../reproduce.sh" MaPLe cross_dataset "$@"
