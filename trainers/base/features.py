"""The features of test images by the frozen image tower, kept on disk for every run that would compute the same."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from yacs.config import CfgNode

from clip import ImageOutput
from clip.digest import add_tensors, as_bytes
from common.errors import UsageError

from .prompted import PromptedCLIP
from .tensor_cache import TensorCache


class KeptOutput(ImageOutput):
    """The feature of images that were not read."""

    def to(self, device: torch.device) -> "KeptOutput":
        return KeptOutput(self.feature.to(device))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UsageError("CACHE has the features of the test images, and this method reads the images", "unset CACHE")


class KeptFeatures:
    """A test loader whose batches have the output of the image tower for images that need not be read.

    The features are those of the same images in the same batches, so that results are the same to the bit.

    Args:
        model: one whose image tower is frozen and has no prompts.
        loader: the loader of the test images.
        cache: where the features are kept.
    """

    def __init__(self, model: PromptedCLIP, loader: Any, cache: TensorCache):
        self.model, self.loader, self.cache = model, loader, cache
        self.device = model.clip.logit_scale.device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            key = self.key()
        except OSError:  # a missing or damaged image, which the loader reports
            key = ""
        features = self.cache.get(key, len(self.loader.dataset)) if key else None
        if features is not None:
            print(f"Image features: {self.cache.file(key)}")
            torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)  # as a loader at its start
            labels = torch.tensor([item.label for item in self.loader.dataset.data_source])
            size = self.loader.batch_size
            for part, label in zip(features.split(size), labels.split(size), strict=True):
                yield {"img": KeptOutput(part), "label": label}
            return
        computed = []
        for batch in self.loader:
            features = self.encode(batch["img"].to(self.device))
            computed.append(features.cpu())
            yield {"img": KeptOutput(features), "label": batch["label"]}
        if key:
            self.cache.put(key, torch.cat(computed))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.model.image_output(images).feature

    def key(self) -> str:
        """A checksum of the images, how they are read, the weights, the batches and the machine's arithmetic.

        Raises:
            OSError: an image cannot be read.
        """
        dataset, visual = self.loader.dataset, self.model.clip.visual
        facts = torch.__version__, self.device.type, self.loader.batch_size, dataset.content, visual
        digest = hashlib.sha256(f"1 {facts}".encode())
        add_tensors(digest, visual.state_dict())
        # One output shows all else: the activation, the heads, the form of the towers, how this machine rounds.
        digest.update(as_bytes(self.encode(dataset[0]["img"][None].to(self.device))))
        return digest.hexdigest()[:32]


def kept_features(cfg: CfgNode, model: PromptedCLIP, loader: Any) -> KeptFeatures | None:
    """The features of a loader's images by way of the folder CACHE; None without it, or if they cannot be kept.

    Args:
        cfg: of the run.
        model: features can be kept if its image tower is frozen, has no prompts and is read at its feature only.
        loader: of test images, in order.
    """
    folder, in_order = cache_folder(cfg), isinstance(loader.sampler, SequentialSampler) and not loader.drop_last
    if not folder or not in_order or not hasattr(type(loader.dataset), "content") or not model.features_are_frozen:
        return None
    cache = TensorCache(folder, "features", "image features", 1e9 * cfg.CACHE_GB, "CACHE_GB")
    return KeptFeatures(model, loader, cache)


def cache_folder(cfg: CfgNode) -> Path | None:
    """The folder CACHE; None if it is not set, and nothing is kept.

    Raises:
        UsageError: it is not a folder.
    """
    if not cfg.get("CACHE", ""):
        return None
    folder = Path(cfg.CACHE).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"CACHE is {cfg.CACHE}, which is not a folder", "give the path of a folder", folder)
    return folder
