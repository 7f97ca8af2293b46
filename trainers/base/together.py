"""Methods that answer for many test images together: each answer depends on all of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from common.errors import UsageError

from . import streams
from .compat import require_stream
from .data_use import fit_phase
from .features import CachedFeatures, cached_features, feature_cache, loader_of
from .method import Method
from .prompted import normalize
from .prompts import TemplatePrompts
from .settings import MethodSettings
from .teacher import unit_texts
from .trained_run import load_method_like, trained_run

SCALE = 100.0  # of the cosines in the published code, whatever CLIP's own scale is
Labelled = tuple[Tensor, Tensor]  # unit features (images, joint) and labels (images,)


@dataclass(frozen=True)
class OverSettings(MethodSettings):
    """OVER is the output folder of a run whose answers are the prior instead of zero-shot CLIP's;
    {seed} and {shots} in it are those of this run.
    """

    OVER: str = ""


@dataclass(frozen=True)
class SupportSettings(MethodSettings):
    """SUPPORT adds the training images with their labels, and validation images that choose."""

    SUPPORT: bool = False


@dataclass(frozen=True, eq=False)
class Task:
    """Images that are answered together.

    Attributes:
        features: (images, joint), fp32, of unit length.
        texts: (classes, joint), fp32, of unit length.
        cosines: (images, classes).
        prior: (images, classes), the probabilities by the texts or by another method.
        support: training images, if the method reads them.
        val: the same for validation images.
    """

    features: Tensor
    texts: Tensor
    cosines: Tensor
    prior: Tensor
    support: Labelled | None = None
    val: Labelled | None = None

    @classmethod
    def of(cls, features: Tensor, texts: Tensor, **others: Any) -> "Task":
        """A task whose prior is zero-shot CLIP."""
        cosines = features @ texts.T
        return cls(features, texts, cosines, (SCALE * cosines).softmax(dim=1), **others)


class TogetherMethod(Method):
    """A method that answers for all images of a test together. Its `Settings` may be
    `SupportSettings` and, if it reads the prior of a task, `OverSettings`.
    """

    learns = False
    reads_sentences = True
    reads_template = True
    kind = "transductive"
    is_transductive = True
    least_images: int = 1  # of a task
    base: Method | None = None  # of OVER

    def predict_task(self, images: Task) -> Tensor:
        """The logits of the images of a task, (images, classes)."""
        raise NotImplementedError

    def build_prompts(self, clip, classnames):
        return TemplatePrompts(self.template(), classnames, clip)

    @cached_property
    def texts(self) -> Tensor:
        """(classes, joint), fp32, of unit length: the mean of a class's sentences."""
        return unit_texts(self, self.template())

    @classmethod
    def check_run(cls, cfg: CfgNode) -> None:
        super().check_run(cfg)
        require_stream(cls.__name__)

    def parts(self, loader: Any) -> streams.Parts:
        """The places of the images of a loader that are answered together. TEST.STREAM is for the
        split of TEST.SPLIT alone.
        """
        labels = [item.label for item in loader.dataset.data_source]
        if (loader is self.images.test_loader) != (self.cfg.TEST.SPLIT == "test"):
            return [np.arange(len(labels))]
        found = streams.parts(self.cfg, labels)
        fewest = min(found, key=len, default=())
        if len(fewest) < self.least_images:
            fault = f"{type(self).__name__} needs {self.least_images} images at a time"
            remedy = "raise TEST.STREAM_BATCH, or leave out TEST.STREAM"
            raise UsageError(f"{fault}, and a part of the test has {len(fewest)}", remedy)
        return found

    def test_loader(self, loader: Any) -> DataLoader:
        """The images of all parts, in turn: an image of several parts is there several times."""
        items = loader.dataset.data_source
        parts = self.parts(loader)
        listed = loader_of([items[place] for part in parts for place in part], loader)
        images: Any = listed.dataset
        images.part_sizes = [len(part) for part in parts]
        return listed

    def predict_loader(self, loader: Any, folder: str) -> Iterator[Labelled]:
        listed = loader.dataset.data_source
        once = list({id(item): item for item in listed}.values())
        features, labels = self.labelled(once, loader)
        prior = self.prior_of(once, loader)
        # The parts again, by the places among the images that are there once
        numbers = torch.tensor(places_in(once, listed), device=self.device)
        for part in numbers.split(loader.dataset.part_sizes):
            yield self.answers(features[part], None if prior is None else prior[part]), labels[part]

    def answers(self, features: Tensor, prior: Tensor | None = None) -> Tensor:
        """The logits (images, classes) of images that are answered together.

        Args:
            features: (images, joint), fp32, of unit length.
            prior: (images, classes), the probabilities by another method; None: by zero-shot CLIP.
        """
        task = Task.of(features, self.texts, support=self.support, val=self.val)
        return self.predict_task(task if prior is None else replace(task, prior=prior))

    def labelled(self, items: list, loader: Any) -> Labelled:
        """The unit features and the labels of images (a list of `Datum`), read as in a test."""
        images = loader_of(items, loader)
        cached = CachedFeatures(self.model, images, feature_cache(self.cfg))
        features = cached.tensor().to(self.device).float()
        return normalize(features), cached.labels.to(self.device)

    def after_build(self) -> None:
        if getattr(self.settings, "OVER", ""):
            self.open_base()
        if self.reads_support and self.images is not None:
            dataset = self.images.dataset
            own = fit_phase(self.cfg, self.dataset_title, dataset, len(self.class_names))
            if not getattr(self.settings, "SUPPORT", False):
                own = replace(own, labels=0)
            self.inherited_phases = [*(self.inherited_phases or ()), own]

    def open_base(self) -> None:
        """Open the run of OVER, with what is behind it."""
        key = f"TRAINER.{self.section()}.OVER"
        kind, checkpoint, path = trained_run(self.folder_of_run(self.settings.OVER), key)
        self.check_base(kind, path, f"give {key} a run of another method")
        self.base = load_method_like(self, kind, checkpoint, path)
        self.inherited_choices = self.base.inherited_choices
        self.inherited_phases = self.base.inherited_phases
        print(f"On top of {kind.__name__}, {path} (epoch {checkpoint['epoch']})")

    @property
    def combined_name(self) -> str:
        """Its name, with that of the method of OVER, such as `TransCLIP+CoOp`."""
        names = [type(method).__name__ for method in (self, self.base) if method]
        return "+".join(names)

    @classmethod
    def check_base(cls, kind: type[Method], path: str, remedy: str) -> None:
        """Raise UsageError if the answers of a method cannot be the prior of this one."""
        if not issubclass(cls.Settings, OverSettings):
            fault = f"{cls.__name__} reads the answers of no other method"
            raise UsageError(fault, "leave out the model, or name TransCLIP or StatA", path)
        if kind.kind in ("test-time", "transductive"):
            fault = f"{path} is of {kind.__name__}, which answers from test images itself"
            raise UsageError(fault, remedy, path)

    @torch.no_grad()
    def prior_of(self, items: list, loader: Any) -> Tensor | None:
        """(images, classes): the probabilities by the method of OVER; None without one."""
        if self.base is None:
            return None
        base = self.base
        images = loader_of(items, loader)
        batches = cached_features(self.cfg, base.model, images) or images
        logits = [base.model_inference(batch["img"].to(self.device)) for batch in batches]
        return torch.cat(logits).float().softmax(dim=1)

    @property
    def reads_support(self) -> bool:
        """Whether it reads the training images."""
        return getattr(self.settings, "SUPPORT", False)

    @cached_property
    def support(self) -> Labelled | None:
        if not self.reads_support:
            return None
        return self.labelled(self.images.dataset.train_x, self.images.test_loader)

    @cached_property
    def val(self) -> Labelled | None:
        if not getattr(self.settings, "SUPPORT", False):
            return None
        if not self.images.dataset.val:
            fault = f"{self.dataset_title} has no validation images for {type(self).__name__}"
            raise UsageError(fault, f"set TRAINER.{self.section()}.SUPPORT False")
        return self.labelled(self.images.dataset.val, self.images.test_loader)

    def model_inference(self, images: Any) -> Tensor:
        """(batch, 3, H, W) -> (batch, classes), answered together."""
        return self.predict_task(Task.of(normalize(self.model.image_features(images)), self.texts))


def log_of(p: Tensor) -> Tensor:
    """The logarithms of probabilities or scores as logits: fp32 and finite, also of 0."""
    return p.float().clamp(min=torch.finfo(torch.float32).tiny).log()


def squared_distances(x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """(images, classes): the sum over the features of (x - mean)^2 / variance.

    Args:
        x: (images, joint).
        means: (classes, joint).
        variances: (classes, joint), or (joint,) for all classes.
    """
    weights = (1 / variances).expand_as(means)
    squares = x.square() @ weights.T + (means.square() * weights).sum(dim=1)
    return squares - 2 * x @ (means * weights).T


def spread(x: Tensor, z: Tensor, means: Tensor, of_all: bool = False) -> Tensor:
    """(classes, joint), fp64: the sum over images of z times the squared distance to the mean of
    the class; `of_all` sums over the classes, too: (1, joint).

    Args:
        x: (images, joint).
        z: (images, classes), how much of an image belongs to a class.
        means: (classes, joint).
    """
    x = x.double()
    z = z.double()
    means = means.double()
    of_means = z.sum(dim=0)[:, None] * means.square() - 2 * means * (z.T @ x)
    weights = z.T
    if of_all:
        of_means = of_means.sum(dim=0, keepdim=True)
        weights = z.sum(dim=1)[None]
    return (weights @ x.square() + of_means).clamp(min=0)


def places_in(items: list, listed: list) -> list[int]:
    """The place of each listed item in a list without repeats."""
    places = {id(item): place for place, item in enumerate(items)}
    return [places[id(item)] for item in listed]
