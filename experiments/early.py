"""Checks before torch is imported, which takes seconds: the folders that a run needs."""

import argparse
import os
from pathlib import Path

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY

import datasets
from common.nearest import check_folder

from .results import FILE as RESULTS


def check_early(args: argparse.Namespace) -> None:
    """Check that the folders of the dataset and of the prompts to test exist, as far as the arguments name them.

    Raises:
        UsageError: one does not, or the dataset's YAML file is missing or malformed.
    """
    if args.skip_finished and Path(args.output_dir, RESULTS).is_file():
        return
    if args.model_dir:
        remedy = "train first, or check --model-dir (scripts: SEED, SHOTS, CFG, OUT and, for xd_test.sh, SOURCE)"
        check_folder(Path(args.model_dir), "no trained prompts in", remedy)
    if not (args.dataset_config_file and args.root):
        return
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.merge_from_file(args.dataset_config_file)
    given = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    name, root = given.get("DATASET.NAME", cfg.DATASET.NAME), given.get("DATASET.ROOT", args.root)
    dataset = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
    # Datasets of other projects have no `is_synthetic`.
    if dataset is None or getattr(dataset, "is_synthetic", True):
        return
    if not Path(os.path.expanduser(root), dataset.dataset_dir).is_dir():
        cfg.DATASET.ROOT = root
        dataset(cfg, images=False)  # raises its own error
