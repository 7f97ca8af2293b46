"""Datasets: published.yaml, or one file each. Importing this package registers them in Dassl's
DATASET_REGISTRY.
"""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Literal

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from common.schema import FLAG, TEXT, Accepts, add_settings

from . import sentences
from .base import DatasetError

SETTINGS = {
    "DATASET.SUBSAMPLE_CLASSES": ("all", Accepts(Literal["all", "base", "new"]), ""),
    "DATASET.SPLIT_SEED": (
        -1,
        Accepts(int, -1, 2**32 - 1),
        "ImageFolder: from 0, split images that are not split yet",
    ),
    "DATASET.FEWSHOT_FILE": (
        "",
        TEXT,
        "CoOp's .pkl with the few-shot images; may have {shots} and {seed}",
    ),
    "DATASET.TITLE": (
        "",
        TEXT,
        "Its name in results (default: DATASET.NAME; ImageFolder: that of the YAML file)",
    ),
    "DATASET.TEMPLATE": ("", TEXT, "Sentence for zero-shot CLIP, instead of the dataset's own"),
    "DATASET.SENTENCES": ("", TEXT, "JSON file with sentences for each class; may have {dataset}"),
    "DATASET.SENTENCES_SHA256": (
        "",
        TEXT,
        "SHA-256 of that file: another one is refused. A run fills it in",
    ),
    "DATASET.NOISE_RATE": (
        0.0,
        Accepts(int | float, 0, 0.99),
        "Share of training images that get a wrong label, drawn by the seed",
    ),
    "DATASET.NOISE_TYPE": (
        "sym",
        Accepts(Literal["sym", "asym"]),
        "Wrong labels: any other class (sym), or the next one (asym)",
    ),
    "TEST.MAX_IMAGES": (
        0,
        Accepts(int, 0, 10**9),
        "Test on this many images, evenly spread over all; 0: on all",
    ),
    "DATASET.HOLD_OUT": (
        False,
        FLAG,
        "Validate on one training image of each class, and do not train on it",
    ),
}


def extend_cfg(cfg: CfgNode) -> None:
    """Add the settings of this package to a Dassl configuration."""
    add_settings(cfg, SETTINGS)


def set_title(cfg: CfgNode, file: str) -> None:
    """Name the user's own images after their YAML file, unless it sets DATASET.TITLE."""
    name = cfg.DATASET.NAME
    kind = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
    if getattr(kind, "named_by_config", False) and not cfg.DATASET.TITLE:
        cfg.DATASET.TITLE = Path(file).stem if file else name


for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
