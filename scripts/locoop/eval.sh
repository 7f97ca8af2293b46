#!/usr/bin/env bash
# Test the prompts in MODEL_DIR, and how well they detect images of OOD at temperature T.
# bash scripts/locoop/eval.sh DATA DATASET CFG T MODEL_DIR [KEY VALUE ...]
# This is a script of LoCoOp's repository, with its settings.

ARGUMENTS="DATA DATASET CFG T MODEL_DIR"
NOTE="its images of other classes are those of OOD (dtd); each OOD and T has a folder of its own in MODEL_DIR/ood"
source "$(dirname "$0")/../start.sh"

OOD=${OOD:-dtd}
cfg=$CFG
epoch=${EPOCHS:-}
case $cfg in small*) ;; *) epoch=${EPOCHS:-50} ;; esac
run python train.py --root "$DATA" --trainer LoCoOp \
    --dataset-config-file "configs/datasets/$DATASET.yaml" \
    --config-file "configs/trainers/LoCoOp/$cfg.yaml" \
    --output-dir "$MODEL_DIR/ood/${OOD}_T$T" --eval-only --model-dir "$MODEL_DIR" \
    ${epoch:+--load-epoch "$epoch"} --ood "$OOD" \
    "${OPTIONS[@]}" \
    TEST.OOD_T "$T" \
    TRAINER.LOCOOP.N_CTX 16 \
    TRAINER.LOCOOP.CSC False "$@"
