"""Datasets: one file each. Importing this package registers them in Dassl's DATASET_REGISTRY."""

from importlib import import_module
from pkgutil import iter_modules

from yacs.config import CfgNode

from .base import DatasetError

ACCEPTED = {  # values of the keys that `extend_cfg` adds; `base.py` checks the template
    "DATASET.SUBSAMPLE_CLASSES": ("all", "base", "new"),
    "DATASET.SPLIT_SEED": range(-1, 1 << 32),
}


def extend_cfg(cfg: CfgNode) -> None:
    """Add the settings of this package to a Dassl configuration."""
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # or base, or new
    cfg.DATASET.SPLIT_SEED = -1  # ImageFolder: from 0, split images that are not split yet
    cfg.DATASET.TEMPLATE = ""  # sentence for zero-shot CLIP, instead of the dataset's own


for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

__all__ = ["ACCEPTED", "DatasetError", "extend_cfg"]
