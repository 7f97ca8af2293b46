"""Methods that change the towers: they train on the images themselves, while the minutes of the
user last.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from dassl.data import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.utils import ChangedImageError, read_image, set_random_seed
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

import trainers
from clip import weights_sha256
from clip.digest import Key
from common.cache import DiskCache
from common.errors import UsageError
from configs.files import config_folder
from configs.recipes import recipe
from inference.description import configuration
from inference.images import BATCH
from trainers.base.compat import build_transform
from trainers.base.features import get_tensor, put_tensor
from trainers.base.method import Method
from trainers.base.steps import SteppedMethod
from trainers.base.teacher import cache_folder
from trainers.base.trainer import assemble_model
from trainers.base.training import learn

from .candidates import Candidate
from .heads import Heads
from .photos import Photos
from .plan import Check, Plan, ignore, steps

# The most promising first
TRAINED = tuple(map(Candidate, ("TwoStage", "FineTune", "CLIPLoRA", "MPL", "KgCoOp")))
LIMIT = 1e9  # bytes of all logits that are kept


class Towers:
    """Prompts and adapters in the towers of one CLIP, with their published settings for few images.

    Args:
        heads: of the same CLIP and classes.
        photos: have the training images, whose places methods take. Another file in the place of
            one is a ChangedImageError.
    """

    def __init__(self, heads: Heads, photos: Photos):
        self.sha256 = {photo.path: bytes.fromhex(photo.sha256) for photo in photos.images}
        self.heads = heads
        self.photos = photos.training
        labels = photos.label_numbers(self.photos)
        self.items = [
            Datum(photo.path, label) for photo, label in zip(self.photos, labels, strict=True)
        ]
        self.cache = DiskCache(cache_folder(), "fits", "logits of trained candidates", LIMIT)

    def settings(self, name: str) -> Any:
        """The configuration of a method: that of its recipe, for images as the backbone reads
        them.
        """
        description = self.heads.zero_shot.description
        chosen = recipe(name, "few_shot", backbone=description.backbone)
        cfg = configuration(name)
        cfg.merge_from_file(str(config_folder(name) / f"{chosen.cfg}.yaml"))
        cfg.merge_from_list(list(chosen.settings))
        image = {key: value for key, value in description.input.items() if key != "TRANSFORMS"}
        cfg.merge_from_other_cfg(
            {"INPUT": image, "TRAINER": {trainers.methods()[name].section(): {"PREC": "fp32"}}}
        )
        cfg.MODEL.BACKBONE.NAME = description.backbone
        return cfg

    def planned(
        self, candidates: Sequence[Candidate], plan: Plan, row: NDArray[Any]
    ) -> Iterator[tuple[Candidate, Callable[[Check], Tensor] | str]]:
        """Those candidates that end in time, with what computes their logits, and why others are
        left out.

        Args:
            plan: that of a fit that was killed says which candidates it has taken.
            row: (images,), their folds.
        """
        if plan.trained is None:
            plan.write(trained=self.faults(candidates, plan.end, row))
        for candidate in candidates:
            reason = (plan.trained or {}).get(candidate.method)
            yield candidate, reason or partial(self.held_out, candidate, row)

    def faults(
        self, candidates: Sequence[Candidate], deadline: float, row: NDArray[Any]
    ) -> dict[str, str]:
        """Why a candidate is left out, by its method; empty for one that ends before the deadline
        of `time.monotonic`.
        """
        faults = {}
        for candidate in candidates:
            if time.monotonic() >= deadline:
                faults[candidate.method] = "no time is left: raise --minutes"
                continue
            try:
                minutes = self.seconds(candidate, row) / 60
            except ChangedImageError:  # the method is not at fault
                raise
            except UsageError as error:
                faults[candidate.method] = str(error)
                continue
            left = (deadline - time.monotonic()) / 60
            faults[candidate.method] = ""
            if minutes > left:
                needs = f"it takes about {minutes:.1f} minutes, and {max(0, left):.1f} are left"
                faults[candidate.method] = f"{needs}: raise --minutes"
            else:
                deadline -= 60 * minutes
        return faults

    def method(self, candidate: Candidate, images: int) -> Method:
        """The method with a model that has seen nothing, for so many training images."""
        set_random_seed(self.heads.seed)
        kind = trainers.methods()[candidate.method]
        heads = self.heads
        classes = heads.classes if kind.reads_sentences else heads.classes._replace(sentences={})
        cfg = self.settings(candidate.method)
        method = kind(cfg, classes, heads.device, images)
        assemble_model(method, clip=heads.clip)
        return method

    def loader(self, method: Method, places: NDArray[Any]) -> DataLoader:
        """The training images at these places."""
        cfg = method.cfg
        items = [self.items[place] for place in places]
        images = DatasetWrapper(cfg, items, build_transform(cfg, is_train=True), is_train=True)
        images.sha256 = self.sha256
        size = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        drop_last = not method.keeps_last_batch and len(places) >= size
        return DataLoader(images, size, shuffle=True, drop_last=drop_last)

    def fit(self, candidate: Candidate, places: NDArray[Any]) -> Method:
        """The method after it has learned from the images at these places.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        method = self.method(candidate, len(places))
        learn(method, self.loader(method, places), epochs_of(method))
        return method

    def pixels(self, paths: Sequence[str]) -> Iterator[Tensor]:
        """Batches (batch, 3, H, W) of image files, read as for a test."""

        def read(path: str, *options: Any) -> Any:
            return read_image(path, *options, self.sha256.get(path))

        for first in range(0, len(paths), BATCH):
            yield self.heads.zero_shot.pixels(paths[first : first + BATCH], read)

    def answers(self, method: Method, places: NDArray[Any]) -> Tensor:
        """Logits (images, classes) for the images at these places."""
        batches = self.pixels([self.items[place].impath for place in places])
        return torch.cat(
            [method.model_inference(batch.to(method.device)).float().cpu() for batch in batches]
        )

    def held_out(self, candidate: Candidate, row: NDArray[Any], check: Check = ignore) -> Tensor:
        """(images, classes): the logits of images whose folds, `row`, were left out. Those of a
        fold are kept on disk. `check` is called after each fold.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        found = torch.full((len(row), len(self.heads.names)), torch.nan)
        for fold in steps(range(int(row.max()) + 1), candidate.name):
            places = np.flatnonzero(row != fold)
            out = np.flatnonzero(row == fold)
            key = self.key(candidate, places, out)
            logits = get_tensor(self.cache, key, (len(out), found.shape[1]), torch.float32)
            if logits is None:
                logits = self.answers(self.fit(candidate, places), out)
                put_tensor(self.cache, key, logits)
            found[out] = logits
            check(found)
        return found

    def key(self, candidate: Candidate, *places: NDArray[Any]) -> str:
        """A checksum of all that the logits of a fold depend on."""
        heads = self.heads
        images = [
            [(self.photos[place].pixels_sha256, self.items[place].label) for place in part]
            for part in places
        ]
        key = Key(
            "logits of a trained candidate",
            2,
            torch=torch.__version__,
            device=heads.device.type,
            seed=heads.seed,
            classes=heads.classes,
            weights=weights_sha256(heads.zero_shot.description.backbone),
            method=candidate.method,
            settings=self.settings(candidate.method),
            images=images,
        )
        return str(key)

    def seconds(self, candidate: Candidate, row: NDArray[Any]) -> float:
        """How long the candidate will take for all folds and for the final training, from two steps
        of it.
        """
        method = self.method(candidate, len(row))
        loader = self.loader(method, np.arange(len(row)))
        epochs = epochs_of(method)
        method.start_training(epochs, len(loader))
        method.model.train()
        batches = method.batches(loader)
        batch = next(iter(batches))
        step = seconds(lambda: method.training_step(batch))
        test = np.arange(min(len(row), BATCH // 4))
        image = seconds(lambda: self.answers(method, test)) / len(test)
        trainings = int(row.max()) + 2
        return trainings * step * len(batches) * epochs + len(row) * image


def epochs_of(method: Method) -> int:
    """The number of epochs; one with all steps for a method that counts steps."""
    return 1 if isinstance(method, SteppedMethod) else method.cfg.OPTIM.MAX_EPOCH


def seconds(compute: Callable[[], object]) -> float:
    """Of the second of two computations: the first also fills caches."""
    for _ in range(2):
        start = time.perf_counter()
        compute()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.perf_counter() - start
