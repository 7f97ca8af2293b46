"""Datasets: one file each. Importing this package registers them in Dassl's DATASET_REGISTRY."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from dassl.data.datasets import DATASET_REGISTRY
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
    cfg.DATASET.TITLE = ""  # its name in results; ImageFolder: that of the YAML file (default: DATASET.NAME)
    cfg.DATASET.TEMPLATE = ""  # sentence for zero-shot CLIP, instead of the dataset's own
    cfg.INPUT.setdefault("EXIF_ORIENTATION", False)  # the published Dassl has no such key, and reads images as stored


def set_title(cfg: CfgNode, file: str) -> None:
    """Name the user's own images after their YAML file, unless it sets DATASET.TITLE."""
    name = cfg.DATASET.NAME
    kind = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
    if getattr(kind, "named_by_file", False) and not cfg.DATASET.TITLE:
        cfg.DATASET.TITLE = Path(file).stem if file else name


def title(cfg: CfgNode) -> str:
    """The dataset's name in results, messages and checkpoints."""
    return cfg.DATASET.get("TITLE", "") or cfg.DATASET.NAME


for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

__all__ = ["ACCEPTED", "DatasetError", "extend_cfg", "set_title", "title"]
