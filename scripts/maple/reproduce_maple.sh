#!/usr/bin/env bash
# reproduce_maple.sh DATASET SEED WEIGHTS [OPTION ...]
# The published name of: scripts/reproduce.sh MaPLe base2new DATASET SEED WEIGHTS [OPTION ...]
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../reproduce.sh" MaPLe base2new "$@"
