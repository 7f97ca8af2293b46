#!/usr/bin/env bash
# few_shot.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn PromptSRC's prompts on all classes from 1, 2, 4, 8 and 16 images of each, and test them.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=PromptSRC DEFAULT_CFG=vit_b16_c2_ep50_batch4_4+4ctx_few_shot
first=2 # how many arguments stand before KEY VALUE; what is given there comes last, and so counts
[[ ${3:-} =~ ^[0-9]+$ ]] && first=3
case ${2:+$1} in # the other datasets' average is later and narrower than the YAML's
    "" | imagenet | caltech101 | oxford_pets | food101 | ucf101 | sun397) ;;
    *) set -- "${@:1:first}" TRAINER.PROMPTSRC.GPA_MEAN 45 TRAINER.PROMPTSRC.GPA_STD 5 "${@:first+1}" ;;
esac
exec bash "$(dirname "$0")/../few_shot.sh" "$@"
