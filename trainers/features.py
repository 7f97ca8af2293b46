"""The features of test images by the frozen image tower, kept on disk for every run that would compute the same."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import SequentialSampler
from yacs.config import CfgNode

from clip.digest import add_tensors, as_bytes
from common.errors import UsageError
from common.files import replacing

from .prompted import PromptedCLIP

PATTERN = "features-*.safetensors"
ABANDONED = 24 * 3600  # seconds after which nobody writes to an unfinished file any more


class KeptFeatures:
    """A test loader whose batches have outputs of the image tower in place of images.

    A batch's `img` is (batch, joint width), in the type that the tower computes in; `PromptedCLIP.of_tower` makes image
    features of it. They are those of the same images in the same batches, so that results are the same to the bit.

    Args:
        model: one whose image tower has no prompts.
        loader: the loader of the test images.
        folder: where the outputs are kept, in a file with a checksum, under a name that is a checksum of all that they
            depend on.
        limit: size limit of all such files there, in bytes.
        device: where the model is.
    """

    def __init__(self, model: PromptedCLIP, loader: Any, folder: Path, limit: float, device: torch.device):
        self.model, self.loader, self.folder, self.limit, self.device = model, loader, folder, limit, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        try:
            key = self.key()
        except OSError:  # a missing or damaged image, which the loader reports
            key = ""
        file = self.folder / PATTERN.replace("*", key)
        outputs = read(file, key, len(self.loader.dataset))
        if outputs is not None:
            print(f"Image features: {file}")
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
            store(file, key, torch.cat(computed), self.limit)

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
    return KeptFeatures(model, loader, folder, 1e9 * cfg.CACHE_GB, device)


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


def read(file: Path, key: str, images: int) -> Tensor | None:
    """The outputs (images, joint width) in a file; None if it is missing, damaged or another's."""
    if not key or not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as content:
            outputs, facts = content.get_tensor("outputs"), content.metadata() or {}
    except (OSError, SafetensorError):  # deleted meanwhile, or damaged
        outputs, facts = torch.empty(0), {}
    if facts != {"key": key, "sha256": hashlib.sha256(as_bytes(outputs)).hexdigest()} or len(outputs) != images:
        print(f"{file} is damaged: the image features are computed again")
        return None
    with suppress(OSError):
        os.utime(file)  # files that were not used for longest are deleted first
    return outputs


def store(file: Path, key: str, outputs: Tensor, limit: float) -> None:
    """Keep outputs of the image tower for other runs; if the file cannot be written, print why.

    Files of others that were not used for longest are deleted until all have at most `limit` bytes.
    """
    if outputs.nbytes > limit:
        print(f"{outputs.nbytes / 1e9:.2f} GB of image features are not kept: raise CACHE_GB")
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        facts = {"key": key, "sha256": hashlib.sha256(as_bytes(outputs)).hexdigest()}
        with replacing(file) as partial:
            partial.write_bytes(save({"outputs": outputs}, facts))
    except OSError as error:
        print(f"The image features are not kept for other runs ({error})")
        return
    print(f"Image features are kept in {file}")
    with suppress(OSError):  # another process deletes them too
        for each in file.parent.glob(f".{PATTERN}.*.partial"):
            if time.time() - each.stat().st_mtime > ABANDONED:
                each.unlink()
        files = sorted(file.parent.glob(PATTERN), key=lambda each: each.stat().st_mtime)
        excess = sum(each.stat().st_size for each in files) - limit
        for each in files:
            if excess > 0 and each != file:
                excess -= each.stat().st_size
                each.unlink()
