"""Methods that have nothing to train: they answer for each image of a test from views of it."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from yacs.config import CfgNode

from clip.digest import Key
from common.errors import UsageError
from common.records import SelectionRecord

from . import streams
from .compat import require_stream
from .data_use import choice
from .features import loader_like
from .method import Method
from .partial import PartialTest
from .prompts import TemplatePrompts
from .settings import MethodSettings
from .teacher import unit_texts
from .views import AREA, ViewsTransform

State = dict[str, Tensor]


@dataclass(frozen=True)
class ViewsSettings(MethodSettings):
    """VIEWS of each image: the first one is its centre, and AUGMIX changes the others."""

    VIEWS: int = 64
    AUGMIX: bool = False
    ranges = {"VIEWS": (1, 1024)}


@dataclass(frozen=True)
class TemplatesSettings(ViewsSettings):
    """TEMPLATES are sentences with {} for the class name, of whose features the mean counts."""

    TEMPLATES: list[str] = field(default_factory=list)

    def check(self):
        for template in self.TEMPLATES:
            if "{}" not in template:
                raise UsageError(f"TEMPLATES has {template!r}", "put {} where the class name goes")


class ViewsMethod(Method):
    """A method that answers for each image from features of its views; its `Settings` are
    `ViewsSettings`.

    The image tower reads all views of an image in one batch, without a gradient. A test that was
    interrupted resumes after the images that it has kept results of.
    """

    Settings: ClassVar[type[MethodSettings]] = ViewsSettings
    learns = False
    reads_sentences = True
    kind = "test-time"
    declares = Method.declares | {"depends_on_order": ("new_state",)}
    least_area: ClassVar[float] = AREA[0]  # of a view, as a share of the image
    # Settings that were found on test images if CHOOSE_ON is oracle
    found_by_oracle: ClassVar[tuple[str, ...]] = ()

    def logits_of_features(self, features: Tensor, state: State) -> Tensor:
        """The logits of an image.

        Args:
            features: (views, joint), fp32, of unit length; those of the centre come first.
            state: what the images before it have left, from `new_state` on. It is changed in place.

        Returns:
            (classes,), fp32; of equal ones the first is the answer.
        """
        raise NotImplementedError

    def new_state(self) -> State:
        """The initial state that answers depend on; empty if images do not depend on one
        another.
        """
        return {}

    def order(self, images: int) -> list[int]:
        """The order of the images of a test."""
        return list(range(images))

    @classmethod
    def check_run(cls, cfg: CfgNode) -> None:
        super().check_run(cfg)
        if cls.depends_on_order:
            require_stream(cls.__name__)

    @property
    def templates(self) -> list[str]:
        """The sentences for a class, with {} for its name: TEMPLATES or, without any, the words of
        CTX_INIT.
        """
        return list(getattr(self.settings, "TEMPLATES", ())) or [f"{self.settings.CTX_INIT} {{}}."]

    @cached_property
    def choices(self) -> list[SelectionRecord]:
        if getattr(self.settings, "CHOOSE_ON", "nothing") == "nothing":
            return super().choices
        dataset = self.images.dataset
        keys = [f"TRAINER.{self.section()}.{key}" for key in self.found_by_oracle]
        # Nobody says of how many values
        return [choice(key, self.cfg, self.dataset_title, dataset.test, dataset) for key in keys]

    def build_prompts(self, clip, classnames):
        return TemplatePrompts(self.templates[0], classnames, clip)

    @classmethod
    def test_transform(cls, cfg: CfgNode) -> ViewsTransform:
        settings = cls.settings_of(cfg)
        seed = max(0, cfg.get("SEED", 0))
        return ViewsTransform(
            super().test_transform(cfg),
            tuple(cfg.INPUT.SIZE),
            settings.VIEWS,
            settings.AUGMIX,
            seed,
            cls.least_area,
        )

    def test_loader(self, loader: Any) -> DataLoader:
        """The views of the same images, one image at a time, in the method's order."""
        source = loader.dataset.data_source
        order = self.order(len(source))
        if self.cfg.TEST.get("STREAM", ""):
            order = streams.order(self.cfg, [item.label for item in source]).tolist()
        items = [source[number] for number in order]
        views = type(loader.dataset)(self.cfg, items, transform=self.test_transform(self.cfg))
        return loader_like(loader, views, batch_size=1)

    def logits(self, features: Tensor) -> Tensor:
        """(views, joint) -> (views, classes): scaled cosine similarities, fp32."""
        return self.model.logits(features, self.texts)

    @cached_property
    def texts(self) -> Tensor:
        """(classes, joint), fp32, of unit length: the mean of the sentences' unit features."""
        return unit_texts(self, *self.templates)

    def predict_views(self, views: Tensor, state: State) -> Tensor:
        """`logits_of_features` for an image, from its views (views, 3, H, W)."""
        with self.autocast():
            features = self.model.image_features(views.to(self.device))
        return self.logits_of_features(features, state)

    def predict_loader(self, loader: Any, folder: str) -> Iterator[tuple[Tensor, Tensor]]:
        images = loader.dataset
        partial = PartialTest(Path(folder), self.key(images))
        state = self.new_state()
        kept = partial.read(state)
        labels = torch.tensor([item.label for item in images.data_source], device=self.device)
        for logits, label in zip(kept, labels.split(1), strict=False):
            yield logits[None].to(self.device), label
        rest = loader_like(loader, Subset(images, range(len(kept), len(images))))
        for batch, label in zip(rest, labels[len(kept) :].split(1), strict=True):
            logits = self.predict_views(batch["img"][0], state)
            partial.add(logits, state)
            yield logits[None], label

    def key(self, images: Any) -> str:
        """A checksum of the images of a test (path, size, times of change), of how they are read,
        and of the model.
        """
        key = Key(
            "answers from views",
            2,
            metadata=self.checkpoints.metadata(),
            seed=self.cfg.SEED,
            reading=self.cfg.INPUT,
            templates=self.templates,
            sentences=self.sentences,
        )
        for item in images.data_source:
            with suppress(OSError):  # the loader names an image that cannot be read
                file = os.stat(item.impath)
                key.add(f"{file.st_size} {file.st_mtime_ns} {file.st_ctime_ns} ".encode())
            key.add(f"{item.impath} {item.label}\n".encode())
        key.add_tensors(self.model.state_dict())
        return str(key)

    @torch.no_grad()
    def model_inference(self, images: Any) -> Tensor:
        """(batch, views, 3, H, W) -> (batch, classes), each image by itself; or (batch, 3, H, W),
        one view of each.
        """
        views = images if images.dim() == 5 else images[:, None]
        return torch.stack([self.predict_views(image, self.new_state()) for image in views])


def in_random_order(images: int, seed: int) -> list[int]:
    """The numbers of so many images in an order that depends on the seed alone."""
    chance = torch.Generator().manual_seed(max(0, seed))
    return torch.randperm(images, generator=chance).tolist()


def entropies(logits: Tensor) -> Tensor:
    """(..., classes) -> (...): the entropy of the softmax, in nats."""
    logs = logits.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def entropy_of_mean(logits: Tensor) -> Tensor:
    """(views, classes) -> (): the entropy of the mean over views of their probabilities, in
    nats.
    """
    logs = logits.log_softmax(dim=1).logsumexp(dim=0) - math.log(len(logits))
    return -(logs.exp() * logs).sum()


def most_confident(logits: Tensor, share: float) -> Tensor:
    """The numbers of the views of least entropy, the least first: `int(share * views)` of them, at
    least one.
    """
    order = entropies(logits).argsort(stable=True)
    return order[: max(1, int(len(order) * share))]
