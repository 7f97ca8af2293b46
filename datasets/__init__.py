"""Datasets: one file each. Importing this package registers them in Dassl's DATASET_REGISTRY."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Literal

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from common.schema import Accepts, add_setting

from .base import DatasetError


def extend_cfg(cfg: CfgNode) -> None:
    """Add the settings of this package to a Dassl configuration."""
    add_setting(cfg, "DATASET.SUBSAMPLE_CLASSES", "all", Accepts(Literal["all", "base", "new"]))
    # ImageFolder: from 0, split images that are not split yet
    add_setting(cfg, "DATASET.SPLIT_SEED", -1, Accepts(int, -1, 2**32 - 1))
    # A .pkl of CoOp or _train.jsonl of 2SFS that chooses the few-shot images; {shots} and {seed} are the run's
    add_setting(cfg, "DATASET.FEWSHOT_FILE", "", Accepts(str))
    # Its name in results; ImageFolder: that of the YAML file (default: DATASET.NAME)
    add_setting(cfg, "DATASET.TITLE", "", Accepts(str))
    # Sentence for zero-shot CLIP, instead of the dataset's own
    add_setting(cfg, "DATASET.TEMPLATE", "", Accepts(str))
    # Test on this many images alone, evenly spread over the list of all; 0: on all of them
    add_setting(cfg, "TEST.MAX_IMAGES", 0, Accepts(int, 0, 10**9))
    # Validate on one training image of each class, which is not trained on, instead of the validation images
    add_setting(cfg, "DATASET.HOLD_OUT", False, Accepts(bool))


def set_title(cfg: CfgNode, file: str) -> None:
    """Name the user's own images after their YAML file, unless it sets DATASET.TITLE."""
    name = cfg.DATASET.NAME
    kind = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
    if getattr(kind, "named_by_config", False) and not cfg.DATASET.TITLE:
        cfg.DATASET.TITLE = Path(file).stem if file else name


def title(cfg: CfgNode) -> str:
    """The dataset's name in results, messages and checkpoints."""
    return cfg.DATASET.get("TITLE", "") or cfg.DATASET.NAME


for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

__all__ = ["DatasetError", "extend_cfg", "set_title", "title"]
