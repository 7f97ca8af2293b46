"""The features of a data set by an encoder, and draws of training images."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from benchmarks.fits import Data, Images
from common.files import checksum
from fit.features import Features
from fit.heads import Heads
from inference.classifier import PromptedClassifier

from . import encoders, images

SMALL = "small"


def data_of(folder: Path, backbone: str) -> Data:
    """The features of train/ and test/, which have class folders."""
    names = sorted(path.name for path in (folder / "train").iterdir())
    heads = Heads(PromptedClassifier.zero_shot(backbone, names))
    encoder = Features(heads.zero_shot, heads.tower)
    train, test = (images_of(folder / part, names, encoder) for part in ("train", "test"))
    return Data(heads, train, test)


def images_of(folder: Path, names: list[str], encoder: Features) -> Images:
    """Features and labels of the images in class folders."""
    paths = images_in(folder)
    rows, _ = encoder.of({str(path): checksum(path) for path in paths})
    features = torch.stack([rows[str(path)].feature for path in paths])
    return Images(features, np.array([names.index(path.parent.name) for path in paths]))


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
    return data_of(folder, backbone)
