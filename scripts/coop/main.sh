#!/usr/bin/env bash
# main.sh DATASET CFG CTP NCTX SHOTS CSC [KEY VALUE ...]
# CoOp's own script: few-shot learning on all classes with seeds 1, 2, 3. CTP (end, middle or front) is the class
# token's position, NCTX the number of context vectors, CSC (True or False) asks for class-specific contexts.
# Environment: see scripts/common.sh.
TRAINER=CoOp CFG=${2:-}
source "$(dirname "$0")/../common.sh"
[ $# -ge 6 ] || usage
SHOTS=$5

runs=()
for seed in 1 2 3; do
    read_arguments "$1" "$seed" "${@:7}"
    folder=$OUT/$dataset/CoOp/${CFG}_${SHOTS}shots/nctx$4_csc$6_ctp$3/seed$seed
    runs+=("$folder")
    train "$folder" DATASET.NUM_SHOTS "$SHOTS" TRAINER.COOP.N_CTX "$4" TRAINER.COOP.CSC "$6" \
        TRAINER.COOP.CLASS_TOKEN_POSITION "$3"
done
report "${runs[@]}"
