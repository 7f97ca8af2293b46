"""Checks before torch is imported, which takes seconds: the folders that a run needs."""

import os
from argparse import Namespace
from pathlib import Path

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY

import datasets
from common.files import check_folder

from .results import FILE as RESULTS


def check_early(args: Namespace) -> None:
    """Check that the folders of the dataset and of the prompts to test exist, as far as the arguments name them.

    Raises:
        UsageError: one does not, or the dataset's YAML file is missing or malformed.
    """
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
    if cfg.DATASET.NAME not in DATASET_REGISTRY.registered_names():
        return
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    # Datasets of other projects have no `is_synthetic`.
    if (
        not getattr(dataset, "is_synthetic", True)
        and not Path(os.path.expanduser(args.root), dataset.dataset_dir).is_dir()
    ):
        dataset(cfg, images=False)  # raises its own error
