"""The features of a data set by an encoder, and draws of training images."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.fits import of_each_class
from common.files import checksum
from fit.features import Features
from fit.heads import Heads
from inference.classifier import PromptedClassifier

from . import encoders, images

SMALL = "small"


class Data:
    """The features of a data set by an encoder.

    Attributes:
        x, y: of training images: features (images, width) and labels (images,).
        test_x, test_y: of test images.
    """

    def __init__(self, folder: Path, backbone: str):
        names = sorted(path.name for path in (folder / "train").iterdir())
        zero_shot = PromptedClassifier.zero_shot(backbone, names)
        self.heads = Heads(zero_shot)
        self.encoder = Features(zero_shot, self.heads.tower)
        self.x, self.y = self.of(folder / "train")
        self.test_x, self.test_y = self.of(folder / "test")

    def of(self, folder: Path) -> tuple[Tensor, NDArray[np.int64]]:
        """Features and labels of the images in class folders."""
        paths = images_in(folder)
        rows, _ = self.encoder.of({str(path): checksum(path) for path in paths})
        features = torch.stack([rows[str(path)].feature for path in paths])
        return features, np.array([self.heads.names.index(path.parent.name) for path in paths])

    def draw(
        self, shots: int, seed: int, swapped: int
    ) -> tuple[Tensor, NDArray[np.int64], set[int]]:
        """Features and labels of training images, and the places of those percent of the labels
        that are wrong.
        """
        rng = np.random.default_rng([seed, shots])
        classes = range(len(self.heads.names))
        chosen = of_each_class(self.y, shots, rng)
        labels = self.y[chosen]
        wrong = rng.permutation(len(labels))[: round(swapped / 100 * len(labels))].tolist()
        for place in wrong:
            labels[place] = (labels[place] + rng.integers(1, len(classes))) % len(classes)
        return self.x[chosen], labels, {*wrong}


def images_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


@cache
def loaded(name: str, encoder: str, sources: tuple[Path, ...], output: Path) -> Data:
    """The features of a data set, once in a process, after it and the encoder are built below the
    folder `output`.
    """
    folder = images.build(name, sources, output / "sets")
    backbone = encoder
    if encoder != SMALL:
        backbone = str(encoders.build(encoder, output / "encoders" / encoder))
    return Data(folder, backbone)
