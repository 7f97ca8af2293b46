#!/usr/bin/env bash
# reproduce_xd.sh DATASET SEED WEIGHTS [OPTION ...]
# The published name of: scripts/reproduce.sh PromptSRC cross_dataset DATASET SEED WEIGHTS [OPTION ...]
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../reproduce.sh" PromptSRC cross_dataset "$@"
