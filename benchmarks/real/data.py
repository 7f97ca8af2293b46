"""The features of a data set by an encoder, and the options of the programs of this folder."""

from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fits import Data, Images
from benchmarks.fits import parser as parser_of_fits
from common.files import checksum
from common.start import Parser
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


def data_for(args: Namespace, name: str, encoder: str) -> Data:
    """The same by the options of a program."""
    return loaded(name, encoder, tuple(args.sources), args.output)


def parser(description: str | None, **defaults: Any) -> Parser:
    """The options that the programs have in common."""
    made = parser_of_fits(description)
    made.add_argument("--sets", nargs="+", default=[*images.SETS])
    made.add_argument("--encoders", nargs="+")
    made.add_argument("--shots", nargs="+", type=int)
    made.add_argument("--seeds", nargs="+", type=int, default=range(1, 11))
    made.add_argument("--methods", nargs="+", default=[], help="heads to try (default: all)")
    made.set_defaults(**defaults)
    return made
