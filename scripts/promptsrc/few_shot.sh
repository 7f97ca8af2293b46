#!/usr/bin/env bash
# few_shot.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn PromptSRC's prompts on all classes from 1, 2, 4, 8 and 16 images of each, and test them.
# Environment: see scripts/common.sh.
export USAGE=$(realpath "$0") TRAINER=PromptSRC CFG=${CFG:-vit_b16_c2_ep50_batch4_4+4ctx_few_shot}
case ${1:-} in # the other datasets' average is later and narrower than the YAML's
    imagenet | caltech101 | oxford_pets | food101 | ucf101 | sun397) ;;
    *) set -- "$@" TRAINER.PROMPTSRC.GPA_MEAN 45 TRAINER.PROMPTSRC.GPA_STD 5 ;;
esac
exec bash "$(dirname "$0")/../few_shot.sh" "$@"
