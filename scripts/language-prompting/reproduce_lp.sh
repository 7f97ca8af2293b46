#!/usr/bin/env bash
# reproduce_lp.sh DATASET SEED WEIGHTS [OPTION ...]
# The published name of: scripts/reproduce.sh IVLP base2new DATASET SEED WEIGHTS [OPTION ...]
# Environment: see scripts/common.sh.
CFG=${CFG:-vit_b16_c2_ep5_batch4_4ctx_language_only}
source "$(dirname "$0")/../reproduce.sh" IVLP base2new "$@"
