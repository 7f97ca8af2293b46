#!/usr/bin/env bash
# Test the published prompts in the folder WEIGHTS; for few_shot, SEED stands for SHOTS.
# bash scripts/any/reproduce.sh METHOD PROTOCOL DATASET SEED WEIGHTS [OPTION ...]

ARGUMENTS="METHOD PROTOCOL DATASET SEED WEIGHTS"
source "$(dirname "$0")/../start.sh"

seeds="--seeds $SEED"
if [ "$PROTOCOL" = few_shot ]; then seeds="--seeds 1 2 3 --shots $SEED"; fi
run python tools/reproduce.py "$METHOD" \
    --checkpoints "$WEIGHTS" \
    --protocol "$PROTOCOL" \
    --datasets "$DATASET" \
    $seeds \
    --root "$DATA" --output "$OUT" \
    ${CFG:+--cfg "$CFG"} \
    ${BACKBONE:+--backbone "$BACKBONE"} "$@"
