#!/usr/bin/env bash
# Test the published prompts in the folder WEIGHTS.
# bash scripts/promptsrc/reproduce_base2novel_setting.sh DATASET SEED WEIGHTS [OPTION ...]
# This is a script of PromptSRC's repository, with its settings.

ARGUMENTS="DATASET SEED WEIGHTS"
source "$(dirname "$0")/../start.sh"

epoch=20
if [ -n "$CFG" ] || [ "$BACKBONE" = small ]; then epoch=; fi
run python tools/reproduce.py PromptSRC \
    --checkpoints "$WEIGHTS" \
    --protocol base2new \
    --datasets "$DATASET" \
    --seeds $SEED \
    --root "$DATA" --output "$OUT" \
    ${CFG:+--cfg "$CFG"} \
    ${epoch:+--epoch "$epoch"} \
    ${BACKBONE:+--backbone "$BACKBONE"} "$@"
