"""The features of images by a frozen image tower, kept on disk for every run that would compute the
same.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from yacs.config import CfgNode

from clip import ImageOutput
from clip.digest import add_tensors, as_bytes
from common.cache import DiskCache
from common.errors import UsageError

from .compat import read_of
from .prompted import PromptedCLIP


class CachedOutput(ImageOutput):
    """The feature of images that were not read."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "CachedOutput":
        return CachedOutput(self.feature.to(device, non_blocking=non_blocking))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UsageError(
            "CACHE has the features of the test images, and this method reads the images",
            "unset CACHE",
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

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        image = read_of(self.images, item.impath)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((1_000_003 * self.seed + index) % 2**63)
            views = torch.stack([self.images.transform(image) for _ in range(self.views)])
        return {"img": views, "label": item.label}

    @property
    def content(self) -> str:
        return f"{self.images.content} {self.views} views, seed {self.seed}"


class CachedFeatures:
    """A loader whose batches have the output of the image tower for images that need not be read.

    The features are those of the same images in the same batches, so that results are the same to
    the bit.

    Args:
        model: one whose image features are frozen.
        loader: of images (batch, 3, H, W), or of views of images (batch, views, 3, H, W), in order.
        cache: where the features are kept; None keeps nothing.
    """

    features: Tensor  # all of them, once the last batch was read

    def __init__(self, model: PromptedCLIP, loader: Any, cache: DiskCache | None):
        self.model = model
        self.loader = loader
        self.cache = cache
        self.device = model.clip.logit_scale.device
        self.labels = torch.tensor([item.label for item in loader.dataset.data_source])  # (images,)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        key, kept = self.find()
        if kept is None:
            yield from self.compute(key)
            return
        self.features = kept
        size = self.loader.batch_size
        for part, label in zip(kept.split(size), self.labels.split(size), strict=True):
            yield {"img": CachedOutput(part), "label": label}

    def tensor(self) -> Tensor:
        """All features, (images, joint) or (images, views, joint), as the tower computes them, on
        the CPU.
        """
        for _ in self:
            pass
        return self.features

    def find(self) -> tuple[str, Tensor | None]:
        """The key of the features, empty if they cannot be kept, and those that are kept under
        it.
        """
        if self.cache is None:
            return "", None
        try:
            self.loader.dataset.content  # noqa: B018 - before the first image is read: see `DatasetWrapper`
            sample = self.encode(self.loader.dataset[0]["img"][None].to(self.device))
            key = self.key(sample)
        except OSError:  # a missing or damaged image, which the loader reports
            return "", None
        features = get_tensor(
            self.cache, key, (len(self.loader.dataset), *sample.shape[1:]), sample.dtype
        )
        if features is not None:
            print(f"Image features: {self.cache.file(key)}")
            # Consume one random number, as DataLoader.__iter__ does.
            torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        return key, features

    def compute(self, key: str) -> Iterator[dict[str, Any]]:
        """The batches, whose features are kept after the last one."""
        done = 0
        for batch in self.loader:
            part = self.encode(batch["img"].to(self.device))
            if not done:
                self.features = torch.empty(
                    len(self.loader.dataset), *part.shape[1:], dtype=part.dtype
                )
            self.features[done : done + len(part)] = part
            done += len(part)
            yield {"img": CachedOutput(part), "label": batch["label"]}
        if key and self.cache is not None:
            put_tensor(self.cache, key, self.features)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) -> (..., joint)."""
        return self.model.image_output(images.flatten(0, -4)).feature.unflatten(
            0, images.shape[:-3]
        )

    def key(self, sample: Tensor) -> str:
        """A checksum of the images, how they are read, the weights, the batches and the machine's
        arithmetic.

        `sample` is the output for the first image. It shows all else: the activation, the heads,
        the form of the towers, how this machine rounds. Raises OSError if an image cannot be read.
        """
        dataset = self.loader.dataset
        visual = self.model.clip.visual
        facts = torch.__version__, self.device.type, self.loader.batch_size, dataset.content, visual
        digest = hashlib.sha256(f"1 {facts}".encode())
        add_tensors(digest, self.model.image_tensors())
        digest.update(as_bytes(sample))
        return digest.hexdigest()[:32]


def cached_features(cfg: CfgNode, model: PromptedCLIP, loader: Any) -> CachedFeatures | None:
    """The features of a loader's images by way of the folder CACHE; None without it, or if they
    cannot be kept.

    They can if the loader reads images in order, and the frozen image tower has no prompts and
    gives features only.
    """
    cache = feature_cache(cfg)
    in_order = isinstance(loader.sampler, SequentialSampler) and not loader.drop_last
    if (
        not cache
        or not in_order
        or not hasattr(type(loader.dataset), "content")
        or not model.features_are_frozen
    ):
        return None
    return CachedFeatures(model, loader, cache)


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
