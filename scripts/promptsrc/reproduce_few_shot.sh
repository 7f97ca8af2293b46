#!/usr/bin/env bash
# reproduce_few_shot.sh DATASET SHOTS WEIGHTS [OPTION ...]
# The published name of: scripts/reproduce.sh PromptSRC few_shot DATASET SHOTS WEIGHTS [OPTION ...]
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../reproduce.sh" PromptSRC few_shot "$@"
