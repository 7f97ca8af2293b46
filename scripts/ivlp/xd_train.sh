#!/usr/bin/env bash
# xd_train.sh DATASET SEED [EPOCHS] [KEY VALUE ...]
# Learn IVLP's prompts on all classes of the source dataset (imagenet, in the paper).
# Environment: see scripts/common.sh.
source "$(dirname "$0")/../xd_train.sh" IVLP "$@"
