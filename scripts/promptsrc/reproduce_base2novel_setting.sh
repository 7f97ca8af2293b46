#!/usr/bin/env bash
# reproduce_base2novel_setting.sh DATASET SEED WEIGHTS [OPTION ...]
# The published name of: scripts/reproduce.sh PromptSRC base2new DATASET SEED WEIGHTS [OPTION ...]
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../reproduce.sh" PromptSRC base2new "$@"
