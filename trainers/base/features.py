"""The features of images by a frozen image tower, kept on disk for every run that would compute the
same.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from yacs.config import CfgNode

from clip import ImageOutput
from clip.digest import Key, as_bytes
from common.cache import DIGEST, DiskCache, Table
from common.errors import UsageError

from .compat import read_of
from .prompted import PromptedCLIP

PART = 256  # rows that are copied at a time


class CachedOutput(ImageOutput):
    """The feature of images that were not read."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "CachedOutput":
        return CachedOutput(self.feature.to(device, non_blocking=non_blocking))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UsageError(
            "CACHE has the features of the images, and this method reads the images", "unset it"
        )


class ViewsDataset(Dataset):
    """So many views of each image of a `DatasetWrapper` with a random transform; an image is
    decoded once.

    They are the same for a seed, whatever the number of workers.
    """

    def __init__(self, images: Any, views: int, seed: int):
        self.images = images
        self.views = views
        self.seed = seed
        self.data_source = images.data_source

    @property
    def cfg(self) -> CfgNode:
        return self.images.cfg

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        image = read_of(self.images, item.impath)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which keeps the text of the stack for each kind of GPU
            torch.default_generator.manual_seed((1_000_003 * self.seed + index) % 2**63)
            views = torch.stack([self.images.transform(image) for _ in range(self.views)])
        return {"img": views, "label": item.label}

    @property
    def reading(self) -> str:
        return f"{self.images.reading} {self.views} views, seed {self.seed}"

    @property
    def digests(self) -> list[bytes]:
        """Of each image and its place, on which its views depend."""
        return [
            hashlib.sha256(digest + str(place).encode()).digest()
            for place, digest in enumerate(self.images.digests)
        ]


class CachedFeatures:
    """A loader whose batches have the output of the image tower for images that need not be read.

    A feature is kept by the checksum of its image and the size of its batch, so that other lists
    of images use it, and results are the same to the bit.

    Args:
        model: one whose image features are frozen.
        loader: of images (batch, 3, H, W), or of views of images (batch, views, 3, H, W), in order.
        cache: where the features are kept; None keeps nothing.
    """

    features: Tensor  # all of them, since the first batch was read

    def __init__(self, model: PromptedCLIP, loader: Any, cache: DiskCache | None):
        self.model = model
        self.loader = loader
        self.cache = cache
        self.device = model.clip.logit_scale.device
        self.labels = torch.tensor([item.label for item in loader.dataset.data_source])  # (images,)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size = self.loader.batch_size
        for part, label in zip(self.tensor().split(size), self.labels.split(size), strict=True):
            yield {"img": CachedOutput(part), "label": label}

    def tensor(self) -> Tensor:
        """All features, (images, joint) or (images, views, joint), as the tower computes them, on
        the CPU: those that are kept, and others, which are computed and kept.
        """
        table = self.table()
        kept = table.get(self.keys) if table else {}
        if table and kept:
            print(f"Image features of {table.cache.folder}: {len(kept):,} are known")
        shape = len(self.labels), *self.sample.shape[1:]
        self.features = self.sample.new_empty(shape, device="cpu")
        missing = []
        for place in range(len(self.labels)):
            row = kept.get(self.keys[place]) if kept else None
            if row is None:
                missing.append(place)
            else:
                content = torch.from_numpy(row["feature"].copy())
                self.features[place] = content.view(self.sample.dtype).reshape(shape[1:])
        self.encode_some(missing)  # also none: a loader draws a number, as that of the images does
        if table and missing:
            table.put([self.keys[place] for place in missing], self.rows(table, missing))
        return self.features

    def table(self) -> Table | None:
        """Where the features are kept; None if they cannot be."""
        if self.cache is None:
            return None
        try:
            len(self.loader.dataset.digests)  # before the first image is read
        except OSError:  # a missing or damaged image, which the loader reports
            return None
        # numpy has no bfloat16
        fields = [("key", np.uint8, DIGEST), ("feature", np.uint8, self.sample.nbytes)]
        return Table(self.cache, self.facts, np.dtype(fields))

    @cached_property
    def sample(self) -> Tensor:
        """(1, joint) or (1, views, joint): the feature of noise."""
        dataset = self.loader.dataset
        views = [dataset.views] if hasattr(dataset, "views") else []
        numbers = torch.Generator().manual_seed(0)
        noise = torch.randn(1, *views, 3, *dataset.cfg.INPUT.SIZE, generator=numbers)
        return self.encode(noise.to(self.device))

    @cached_property
    def facts(self) -> str:
        """16 letters, a checksum of how images are read, the weights and the machine's arithmetic.

        The feature of noise shows the activation, the heads, the form of the towers, and how this
        machine rounds.
        """
        key = Key(
            "features",
            3,
            torch=torch.__version__,
            device=self.device.type,
            reading=self.loader.dataset.reading,
            tower=self.model.clip.visual,
            dtype=self.sample.dtype,
        )
        key.add_tensors(self.model.image_tensors() | {"noise": self.sample})
        return str(key)[:16]

    @property
    def full(self) -> int:
        """The number of images in batches of full size; the others are in a smaller last one."""
        return len(self.labels) - len(self.labels) % self.loader.batch_size

    @cached_property
    def keys(self) -> list[bytes]:
        """Of each image: its checksum, and the size of its batch."""
        size = self.loader.batch_size
        rest = len(self.labels) - self.full
        sizes = [size if place < self.full else rest for place in range(len(self.labels))]
        return [
            hashlib.sha256(digest + str(size).encode()).digest()
            for digest, size in zip(self.loader.dataset.digests, sizes, strict=True)
        ]

    def encode_some(self, places: list[int]) -> None:
        """Compute the features of these images, in batches of the loader's size."""
        batches = self.batches_with(places)
        loader = loader_like(self.loader, self.loader.dataset, batch_sampler=batches, batch_size=1)
        for rows, batch in zip(batches, loader, strict=True):
            self.features[rows] = self.encode(batch["img"].to(self.device)).cpu()

    def batches_with(self, places: list[int]) -> list[list[int]]:
        """Batches with these images, each of the size that it has in the loader; other images fill
        them up.
        """
        size = self.loader.batch_size
        wanted = [place for place in places if place < self.full]
        others = set(range(self.full)).difference(wanted)
        wanted += sorted(others)[: -len(wanted) % size]
        batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        if places and places[-1] >= self.full:
            batches.append(list(range(self.full, len(self.labels))))
        return batches

    def rows(self, table: Table, places: list[int]) -> Iterator[Any]:
        """The rows of these images, some at a time."""
        for first in range(0, len(places), PART):
            some = places[first : first + PART]
            rows = np.empty(len(some), table.row_type)
            rows["key"] = [list(self.keys[place]) for place in some]
            rows["feature"] = as_bytes(self.features[some]).reshape(len(some), -1)
            yield rows

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) -> (..., joint)."""
        return self.model.image_output(images.flatten(0, -4)).feature.unflatten(
            0, images.shape[:-3]
        )


def cached_features(cfg: CfgNode, model: PromptedCLIP, loader: Any) -> CachedFeatures | None:
    """The features of a loader's images by the folder CACHE; None without it, or if features cannot
    be kept.

    They can if the loader reads images in order, and the frozen image tower has no prompts and
    gives features only.
    """
    in_order = isinstance(loader.sampler, SequentialSampler) and not loader.drop_last
    has_digests = hasattr(type(loader.dataset), "digests")
    is_kept = cfg.CACHE and in_order and has_digests and model.features_are_frozen
    return CachedFeatures(model, loader, feature_cache(cfg)) if is_kept else None


def feature_cache(cfg: CfgNode) -> DiskCache | None:
    """Where image features are kept; None if the folder CACHE is not set."""
    if not cfg.CACHE:
        return None
    return DiskCache(
        Path(cfg.CACHE).expanduser(), "features", "image features", 1e9 * cfg.CACHE_GB, "CACHE_GB"
    )


@dataclass(frozen=True)
class Support:
    """The training images."""

    views: Tensor  # (views, images, joint), fp32, features that are not normalised
    labels: Tensor  # (images,)

    @property
    def rows(self) -> Tensor:
        """(views * images, joint): all features of the first view, of the second, ..."""
        return self.views.flatten(0, 1)

    @property
    def row_labels(self) -> Tensor:
        """(views * images,)."""
        return self.labels.repeat(len(self.views))


class Batches:
    """Batches of features, `steps` of them in an epoch.

    A `mixed` epoch draws from the views of all images together, another one has one view of each
    image.
    """

    def __init__(self, support: Support, size: int, steps: int, mixed: bool):
        self.support = support
        self.size = size
        self.steps = steps
        self.mixed = mixed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        views, images = self.support.views.shape[:2]
        if self.mixed:
            order = torch.randperm(views * images)
        else:
            order = torch.randperm(images) + images * torch.randint(views, (images,))
        for rows in order[: self.steps * self.size].split(self.size):
            image = rows % images
            yield {
                "img": CachedOutput(self.support.views[rows // images, image]),
                "label": self.support.labels[image],
            }


def get_tensor(
    cache: DiskCache, key: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor | None:
    """The tensor of a key, whose file is mapped into memory; None if there is no file of this shape
    and type.
    """
    count = math.prod(shape)
    content = cache.get(key, f"{dtype} {tuple(shape)}", count * dtype.itemsize)
    return (
        None
        if content is None
        else torch.frombuffer(content, dtype=dtype, count=count).reshape(shape)
    )


def put_tensor(cache: DiskCache, key: str, tensor: Tensor) -> None:
    """Keep a tensor. If it is too large, or the file cannot be written, this prints why."""
    cache.put(key, f"{tensor.dtype} {tuple(tensor.shape)}", tensor.nbytes, [as_bytes(tensor)])


SAME = ("batch_size", "num_workers", "collate_fn", "worker_init_fn", "pin_memory", "generator")


def loader_like(loader: Any, images: Any, **others: Any) -> DataLoader:
    """A loader of other images in their order, with the options of a loader; `others` replace
    them.
    """
    options: dict[str, Any] = {name: getattr(loader, name) for name in SAME}
    return DataLoader(images, **options | others)


def images_like(images: Any, items: list, transform: Any) -> Any:
    """Other images (a list of `Datum`) that are read as `images` are, with another transform."""
    others = type(images)(images.cfg, items, transform=transform)
    others.on_read = getattr(images, "on_read", None)  # the published Dassl has none
    return others


def loader_of(items: list, loader: Any) -> DataLoader:
    """A loader of other images (a list of `Datum`), which are read as those of a loader."""
    images = loader.dataset
    return loader_like(loader, images_like(images, items, images.transform))
