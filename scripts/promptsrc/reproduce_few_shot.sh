#!/usr/bin/env bash
# Test the published prompts in the folder WEIGHTS.
# bash scripts/promptsrc/reproduce_few_shot.sh DATASET SHOTS WEIGHTS [OPTION ...]
# This is a script of PromptSRC's repository, with its settings.

ARGUMENTS="DATASET SHOTS WEIGHTS"
source "$(dirname "$0")/../start.sh"

epoch=50
if [ -n "$CFG" ] || [ "$BACKBONE" = small ]; then epoch=; fi
run python tools/reproduce.py PromptSRC \
    --checkpoints "$WEIGHTS" \
    --protocol few_shot \
    --datasets "$DATASET" \
    --seeds 1 2 3 --shots "$SHOTS" \
    --root "$DATA" --output "$OUT" \
    ${CFG:+--cfg "$CFG"} \
    ${epoch:+--epoch "$epoch"} \
    ${BACKBONE:+--backbone "$BACKBONE"} "$@"
