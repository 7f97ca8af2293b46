#!/usr/bin/env bash
# reproduce_ivlp.sh DATASET SEED WEIGHTS [OPTION ...]
# The published name of: scripts/reproduce.sh IVLP base2new DATASET SEED WEIGHTS [OPTION ...]
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../reproduce.sh" IVLP base2new "$@"
