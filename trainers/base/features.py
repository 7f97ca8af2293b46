"""The features of test images by the frozen image tower, kept on disk for every run that would compute the same."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from yacs.config import CfgNode

from clip.digest import add_tensors, as_bytes
from common.errors import UsageError

from .prompted import PromptedCLIP
from .tensor_cache import TensorCache


class KeptFeatures:
    """A test loader whose batches have outputs of the image tower in place of images.

    A batch's `img` is (batch, joint width), in the type that the tower computes in; `PromptedCLIP.of_tower` makes image
    features of it. They are those of the same images in the same batches, so that results are the same to the bit.

    Args:
        model: one whose image tower has no prompts.
        loader: the loader of the test images.
        cache: where the outputs are kept.
        device: where the model is.
    """

    def __init__(self, model: PromptedCLIP, loader: Any, cache: TensorCache, device: torch.device):
        self.model, self.loader, self.cache, self.device = model, loader, cache, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        try:
            key = self.key()
        except OSError:  # a missing or damaged image, which the loader reports
            key = ""
        outputs = self.cache.get(key, len(self.loader.dataset)) if key else None
        if outputs is not None:
            print(f"Image features: {self.cache.file(key)}")
            torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)  # as a loader at its start
            labels = torch.tensor([item.label for item in self.loader.dataset.data_source])
            size = self.loader.batch_size
            for part, label in zip(outputs.split(size), labels.split(size), strict=True):
                yield {"img": part.to(self.device), "label": label}
            return
        computed = []
        for batch in self.loader:
            outputs = self.encode(batch["img"].to(self.device))
            computed.append(outputs.cpu())
            yield {"img": outputs, "label": batch["label"]}
        if key:
            self.cache.put(key, torch.cat(computed))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.model.towers.encode_image(self.model.clip, images)

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


def kept_features(cfg: CfgNode, model: PromptedCLIP, loader: Any, device: torch.device) -> Any:
    """A loader of test images as `KeptFeatures`; or as it is, without CACHE or where they do not fit the model.

    Args:
        cfg: of the run.
        model: its image tower counts as frozen and unprompted if the prompt learner has no prompts for it.
        loader: the loader.
        device: where the model is.
    """
    folder, learner = cache_folder(cfg), model.prompt_learner
    in_order = isinstance(loader.sampler, SequentialSampler) and not loader.drop_last
    own = type(model).image_features is PromptedCLIP.image_features
    if not folder or not in_order or not own or not hasattr(type(loader.dataset), "content"):
        return loader
    if learner.vision() or learner.reader() is not None:
        return loader
    cache = TensorCache(folder, "features", "image features", 1e9 * cfg.CACHE_GB, "CACHE_GB")
    return KeptFeatures(model, loader, cache, device)


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
