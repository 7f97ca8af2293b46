#!/usr/bin/env bash
# few_shot.sh DATASET SEED [KEY VALUE ...]
# Fit a linear classifier of CLIP's image features on all classes from 1, 2, 4, 8 and 16 images of each, and test it.
# Environment: see scripts/common.sh; SHOTS can be a list: "4 8".
source "$(dirname "$0")/../few_shot.sh" LinearProbe "$@"
