#!/usr/bin/env bash
# Test the published prompts in the folder WEIGHTS.
# bash scripts/maple/reproduce_maple.sh DATASET SEED WEIGHTS [OPTION ...]
# This is a script of MaPLe's repository, with its settings.

ARGUMENTS="DATASET SEED WEIGHTS"
source "$(dirname "$0")/../start.sh"

epoch=5
if [ -n "$CFG" ] || [ "$BACKBONE" = small ]; then epoch=; fi
run python tools/reproduce.py MaPLe \
    --checkpoints "$WEIGHTS" \
    --protocol base2new \
    --datasets "$DATASET" \
    --seeds $SEED \
    --root "$DATA" --output "$OUT" \
    ${CFG:+--cfg "$CFG"} \
    ${epoch:+--epoch "$epoch"} \
    ${BACKBONE:+--backbone "$BACKBONE"} "$@"
