"""The 15 corruptions of ImageNet-C (Hendrycks & Dietterich, ICLR 2019) on the images of a test:
TEST.CORRUPTION.

They are computed when an image is read, on its centre at INPUT.SIZE, and depend on its pixels and
on the seed: not on other images, workers or threads.
"""

import hashlib
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as T
from yacs.config import CfgNode

from common.errors import UsageError
from common.schema import Accepts
from common.start import installation

from .reading import loader_like
from .views import ViewsTransform, from_tensor_on

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
# They do not read numpy's generator
OWN_SEED = ("impulse_noise", "glass_blur")
SETTINGS: dict[str, tuple] = {
    "TEST.CORRUPTION": (
        "",
        Accepts(Literal[("", *CORRUPTIONS)]),
        "Of ImageNet-C, for the images of the test split; empty: none",
    ),
    "TEST.SEVERITY": (5, Accepts(int, 1, 5), "Of the corruption"),
}
PACKAGE = "imagecorruptions-imaug"
REQUIREMENTS = "requirements-corruptions.txt"
LEAST = 32  # pixels of a side


def corruption_of(cfg: CfgNode) -> str:
    """The corruption of the tested images and its severity, such as `fog 5`; empty without one."""
    test = cfg.TEST
    name = test.get("CORRUPTION", "")
    return f"{name} {test.SEVERITY}" if name and test.SPLIT == "test" else ""


def check(cfg: CfgNode, known: bool) -> None:
    """Raise UsageError if test images cannot be corrupted.

    `known` is whether the trainer is that of a method of this project.
    """
    fault = f"TEST.CORRUPTION is {cfg.TEST.CORRUPTION}"
    if not known:
        raise UsageError(f"{fault}, and {cfg.TRAINER.NAME} is not a method", "leave it out")
    if cfg.TEST.OOD:
        raise UsageError(f"{fault}, and the images of --ood have none", "leave one of them out")
    if min(cfg.INPUT.SIZE) < LEAST:
        size = tuple(cfg.INPUT.SIZE)
        raise UsageError(f"{fault}, and INPUT.SIZE is {size}", f"give at least {LEAST} pixels")
    try:
        distribution(PACKAGE)
    except PackageNotFoundError as error:
        remedy = installation(REQUIREMENTS)
        raise UsageError(f"{fault}, and {PACKAGE} is not installed", remedy) from error


def corrupted(cfg: CfgNode, loader: DataLoader) -> DataLoader:
    """A loader of test images, with the corruption of a run if it has one for them."""
    corruption = corruption_of(cfg)
    if not corruption:
        return loader
    print(f"The test images have the corruption {corruption}")
    images: Any = copy(loader.dataset)
    images.transform = Corrupted.before(images.transform, cfg)
    return loader_like(loader, images)


@dataclass(frozen=True)
class Corrupted:
    """A transform from a PIL image in RGB to a tensor, with a corruption of the centre."""

    centre: T.Compose  # to a PIL image of INPUT.SIZE
    corruption: str
    severity: int
    seed: int
    after: Callable[[Image.Image], Tensor]  # the further steps

    @classmethod
    def before(cls, transform: Any, cfg: CfgNode) -> "Corrupted":
        """The transform of a test, or of its views: these are of the corrupted centre."""
        views = isinstance(transform, ViewsTransform)
        test = transform.centre if views else transform
        after = from_tensor_on(test)
        centre = T.Compose(test.transforms[: -len(after.transforms)])
        if views:
            after = replace(transform, centre=after)
        options = cfg.TEST
        return cls(centre, options.CORRUPTION, options.SEVERITY, max(0, cfg.SEED), after)

    def __call__(self, image: Image.Image) -> Tensor:
        from imagecorruptions import corrupt  # here, as it takes a second

        centre = self.centre(image)
        digest = hashlib.sha256(f"{self.seed} ".encode() + centre.tobytes()).digest()
        seed = int.from_bytes(digest[:4], "big")
        options = {"seed": seed} if self.corruption in OWN_SEED else {}
        before = np.random.get_state()
        np.random.seed(seed)
        try:
            pixels = corrupt(np.asarray(centre), self.severity, self.corruption, **options)
        finally:
            np.random.set_state(before)
        return self.after(Image.fromarray(pixels))
