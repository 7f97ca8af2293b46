"""BANK: a run reads the features that `tools/embed.py` has written, and opens no image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from yacs.config import CfgNode

from common.errors import UsageError
from inference.artefact import INPUT
from inference.bank import Bank, is_bank
from inference.description import image_settings
from inference.lookup import rows_of
from inference.seen import SeenImages
from trainers.base import Method
from trainers.base.corruptions import corruption_of
from trainers.base.feature_method import FeatureMethod
from trainers.base.vision import FrozenTower


class BankedImages:
    """The features of the images of a run in a bank.

    Args:
        method: of the run, with its model.
    """

    def __init__(self, bank: Bank, method: Method):
        self.bank = bank
        self.device = method.device
        self.tower = FrozenTower(method.model.frozen)
        self.before: dict[str, NDArray[np.float32]] = {}  # by path: before the projection

    def read(self, items: Sequence[Any]) -> None:
        """Read the features of images, each with an `impath`; UsageError if the bank lacks one."""
        unknown = [item for item in items if item.impath not in self.before]
        if unknown:
            rows = rows_of(self.bank, [item.impath for item in unknown])
            self.before |= {path: row["before"] for path, row in rows.items()}
            for item in unknown:
                item.sha256 = rows[item.impath]["sha256"]

    def features(self, items: Sequence[Any], kind: type) -> Tensor:
        """(images, joint), or (images, width) for a class of models that reads features before the
        projection of the tower.
        """
        self.read(items)
        before = torch.from_numpy(np.stack([self.before[item.impath] for item in items]))
        return self.tower.inputs(kind, before.to(self.device)).cpu()

    def seen(self, items: Sequence[Any], role: str, look: bool = True) -> SeenImages:
        """As `SeenImages.of_files`, if the bank `knows_looks`."""
        rows = rows_of(self.bank, [item.impath for item in items], "pixels_sha256", "signature")
        known = [rows[item.impath] for item in items]
        sha256 = [row["pixels_sha256"] for row in known]
        signatures = [row["signature"] for row in known]
        seen = SeenImages.of(sha256, signatures, [item.label for item in items], role)
        return seen if look else seen.without_signatures()


def check(cfg: CfgNode, method: type[Method] | None, evaluates: bool) -> None:
    """Raise UsageError if BANK is not a bank, or lacks what the run reads."""
    folder = Path(cfg.BANK).expanduser()
    if not is_bank(folder):
        raise UsageError(f"BANK is {folder}, which is not a bank", "write it by tools/embed.py")
    name = cfg.TRAINER.NAME
    if method is None:
        raise without_images(f"{name} is not a method of this project")
    if cfg.TEST.OOD or corruption_of(cfg):
        raise without_images("--ood and TEST.CORRUPTION read these")
    if hasattr(method.test_transform(cfg), "count"):
        raise without_images(f"{name} answers from views of an image")
    if method.learns and not evaluates:
        check_learner(cfg, method)
    image = image_settings(cfg)
    inputs = {key: image[key] for key in INPUT}
    Bank(folder).check_tower(inputs, cfg.MODEL.BACKBONE.NAME, "this run")


def check_learner(cfg: CfgNode, method: type[Method]) -> None:
    """Raise UsageError unless a method learns from the features of images, read as in a test."""
    if not issubclass(method, FeatureMethod):
        raise without_images(f"{method.__name__} learns from these")
    views = method.settings_of(cfg).AUGMENT_EPOCH
    if views:
        key = f"TRAINER.{method.section()}.AUGMENT_EPOCH"
        raise UsageError(f"BANK has no random views of images, and {key} is {views}", "set it to 0")


def without_images(why: str) -> UsageError:
    return UsageError(f"BANK has features and no images, and {why}", "leave BANK out")


def read(cfg: CfgNode, trainer: Any, eval_only: bool) -> None:
    """Let the method of a run read its bank.

    Raises:
        UsageError: the bank lacks images of the run, or the method has an image tower of its own.
    """
    method = trainer.method
    check_tower(method)
    method.bank = BankedImages(Bank(Path(cfg.BANK).expanduser()), method)
    method.bank.read(read_images(cfg, trainer, eval_only))
    print(f"Image features: {method.bank.bank.folder}")


def check_tower(method: Method) -> None:
    """Raise UsageError if a method, or the run whose answers it reads, changes the image tower."""
    base = getattr(method, "base", None)
    models = [one.model for one in (method, base) if one]
    for model in models:
        if not model.features_are_frozen or getattr(model, "base", None) is not None:
            raise without_images(f"{type(method).__name__} has an image tower of its own")


def read_images(cfg: CfgNode, trainer: Any, eval_only: bool) -> list[Any]:
    """The images that a run reads, as far as it is known before."""
    method = trainer.method
    dataset = trainer.dm.dataset
    trains = method.learns and not eval_only
    has_support = getattr(method, "reads_support", False)
    chooses = trains and any(choice.split == "val" for choice in method.choices)
    validates = cfg.TEST.SPLIT == "val" and trainer.val_loader
    tested = trainer.val_loader if validates else trainer.test_loader
    images = [] if cfg.TEST.NO_TEST else [*tested.dataset.data_source]
    if trains or has_support:
        images += dataset.train_x
    if chooses or cfg.TEST.CALIBRATE or getattr(method.settings, "SUPPORT", False):
        images += dataset.val or ()
    return images
