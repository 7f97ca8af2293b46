#!/usr/bin/env bash
# eval.sh DATASET CFG [KEY VALUE ...]
# CoOp's own script: test on a dataset what `main.sh SOURCE CFG end 16 16 False` has learned (SOURCE: imagenet).
# Environment: see scripts/common.sh; NCTX (16), CSC (False), CTP (end).
TRAINER=CoOp CFG=${2:-}
source "$(dirname "$0")/../common.sh"
[ $# -ge 2 ] || usage
NCTX=${NCTX:-16} CSC=${CSC:-False} CTP=${CTP:-end}

setting=nctx${NCTX}_csc${CSC}_ctp$CTP
runs=()
for seed in 1 2 3; do
    read_arguments "$1" "$seed" "${@:3}"
    folder=$OUT/evaluation/CoOp/${CFG}_${SHOTS}shots/$setting/$dataset/seed$seed
    runs+=("$folder")
    evaluate "$folder" "$OUT/${SOURCE:-imagenet}/CoOp/${CFG}_${SHOTS}shots/$setting/seed$seed" \
        DATASET.NUM_SHOTS "$SHOTS" TRAINER.COOP.N_CTX "$NCTX" TRAINER.COOP.CSC "$CSC" \
        TRAINER.COOP.CLASS_TOKEN_POSITION "$CTP"
done
report "${runs[@]}"
