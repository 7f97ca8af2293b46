"""Checks before torch is imported, which takes seconds: the folders that a run needs."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY

import datasets
from common.files import check_folder

from .results import FILE as RESULTS


def check_early(args: Namespace) -> None:
    """Check that the folders of the dataset and of the prompts to test exist, as far as the arguments name them."""
    if args.skip_finished and Path(args.output_dir, RESULTS).is_file():
        return
    if args.model_dir:
        remedy = "train first, or check --model-dir (scripts: SEED, SHOTS, CFG, OUT and, for xd_test.sh, SOURCE)"
        check_folder(Path(args.model_dir), "no trained prompts in", remedy)
    if not (args.dataset_config_file and args.root) or {"DATASET.NAME", "DATASET.ROOT"}.intersection(args.opts):
        return
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.merge_from_file(args.dataset_config_file)
    cfg.DATASET.ROOT = args.root
    known = cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
    dataset: Any = DATASET_REGISTRY.get(cfg.DATASET.NAME) if known else None
    if getattr(dataset, "is_synthetic", True):  # which datasets of other projects do not say
        return
    if not Path(os.path.expanduser(args.root), dataset.dataset_dir).is_dir():
        dataset(cfg, images=False)  # raises its own error
