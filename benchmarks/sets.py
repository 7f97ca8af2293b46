"""Data sets of the benchmarks with the small CLIP."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.fits import Data, Images, of_each_class
from benchmarks.real.data import SMALL, loaded
from benchmarks.real.images import GARMENTS, dataset, mnist_parts
from common.names import plain
from datasets.eurosat import EuroSAT
from datasets.small_world import SmallLand, SmallObjects
from fit.heads import Heads
from inference.classifier import PromptedClassifier

TRAIN = 400  # images of each class, of which pools are drawn
TEST = 100
MORE = {"train": 200, "val": 1, "test": TEST}  # images of each class of a synthetic set
OF_GARMENTS = {"train": 200, "t10k": TEST}
RANKED = ", 1/rank"  # after the name of a set: sizes of classes fall so
EUROSAT = "EuroSAT"
LANDSCAPES = "landscapes"
OBJECTS = "objects"
FASHION = "Fashion-MNIST"


class Landscapes(SmallLand):
    """SmallLand with more training images."""

    dataset_dir = "labelling_land"
    per_class = MORE


class Objects(SmallObjects):
    """SmallObjects with more training images."""

    dataset_dir = "unlabelled_objects"
    per_class = MORE


KINDS = {EUROSAT: EuroSAT, LANDSCAPES: Landscapes, OBJECTS: Objects}


@cache
def data_of(name: str, root: Path, sources: tuple[Path, ...] = ()) -> Data:
    """A set with the features of its images; one of `benchmarks.real` is in the folder `root`."""
    if name == FASHION:
        heads = small_heads(GARMENTS)
        return Data(heads, *garments(heads, sources))
    if name not in KINDS:
        return loaded(name, SMALL, sources, root)
    images = dataset(KINDS[name], root)
    heads = small_heads(images.classnames)
    train = images_of(heads, images.train_x, TRAIN)
    return Data(heads, train, images_of(heads, images.test, TEST))


def small_heads(names: Iterable[str]) -> Heads:
    """Heads on the small CLIP."""
    return Heads(PromptedClassifier.zero_shot("small", list(map(plain, names))))


def garments(heads: Heads, sources: Sequence[Path]) -> Iterator[Images]:
    """Training and test images of Fashion-MNIST, from its four files."""
    for part, pixels, labels in mnist_parts(sources):
        places = of_each_class(labels, OF_GARMENTS[part], np.random.default_rng(0))
        images = [Image.fromarray(pixels[place]).convert("RGB") for place in places]
        yield Images(features(heads, images), labels[places].astype(np.int64))


def images_of(heads: Heads, items: Sequence[Any], number: int) -> Images:
    """So many images of each class."""
    labels = np.array([item.label for item in items])
    places = of_each_class(labels, number, np.random.default_rng(0))
    images = pictures([items[place].impath for place in places])
    return Images(features(heads, images), labels[places])


def pictures(paths: Iterable[str]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


@torch.no_grad()
def features(heads: Heads, images: Sequence[Image.Image]) -> Tensor:
    """(images, width)."""
    found = []
    for start in range(0, len(images), 64):
        pixels = [heads.zero_shot.transform(image) for image in images[start : start + 64]]
        found.append(heads.tower.image_output(torch.stack(pixels)).feature.float())
    return torch.cat(found)
