"""Methods on features: those of images are computed once, and a head is fitted to them in
seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from yacs.config import CfgNode

from clip import CLIP
from common.errors import UsageError
from common.records import SelectionRecord

from .checkpoints import tensors_of
from .compat import build_transform
from .data_use import choice
from .features import (
    Batches,
    CachedFeatures,
    Support,
    ViewsDataset,
    feature_cache,
    images_like,
    loader_like,
)
from .head import Head, HeadCLIP
from .learned import Checkpoints
from .method import Method
from .prompted import normalize
from .settings import MethodSettings
from .teacher import mean_text_features

IMAGENETS = ("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")

MOST_PAIRS = 250_000_000  # of a training image and a class, in memory at a time


@dataclass(frozen=True)
class FeatureSpec:
    """How a method uses features. `Settings` are `ChoosingSettings` if some are `chosen`.

    Those of `row_tensors` that the method's `tensors_by_class` names have no rows if no class of
    a test was learned.
    """

    # For ImageNet and its variants, instead of the dataset's
    templates_of_imagenet: tuple[str, ...] = ()
    reads_text: bool = True  # whether the head reads text features
    # Text features of unit length, the mean over unit features; else the mean of the tower's
    unit_text: bool = True
    mixed_views: bool = False  # see `Batches`
    row_tensors: tuple[str, ...] = ()  # tensors of the head with a row for each training image
    # Settings that images choose if 0, with an example
    chosen: Mapping[str, str] = field(default_factory=dict)
    trials: int = 1  # from how many values they choose
    needs_all: bool = False  # whether each class must have a training image
    keeps_pairs: bool = False  # whether there are numbers for each training image and class


@dataclass(frozen=True)
class FeatureSettings(MethodSettings):
    """AUGMENT_EPOCH is how many augmented views of each training image are used; 0: the image as in
    a test.
    """

    AUGMENT_EPOCH: int = 0
    ranges = {"AUGMENT_EPOCH": (0, 1000)}


@dataclass(frozen=True)
class ChoosingSettings(FeatureSettings):
    """CHOOSE_ON is which images choose the settings that are 0; oracle: the test images, which
    marks the results.
    """

    CHOOSE_ON: Literal["validation", "oracle"] = "validation"


class HeadCheckpoints(Checkpoints):
    """Checkpoints of a head."""

    def class_dims(self) -> dict[str, tuple[int, ...]]:
        dims = super().class_dims()
        learned = self.method.tensors_by_class
        # Axis 0 has a row for each image
        rows = {name: dims.pop(name, ()) for name in self.method.spec.row_tensors}
        return dims | {
            name: tuple(filter(None, axes)) for name, axes in rows.items() if name in learned
        }


class FeatureMethod(Method):
    """A method that learns a head by gradients, in batches of features.

    It defines `build_head`, and `start` if the head starts from the training images. A run keeps
    the last epoch, those of TRAIN.CHECKPOINT_FREQ, and the best one of TEST.FINAL_MODEL best_val. A
    killed run resumes after the newest of these, or starts again, as an epoch takes milliseconds.
    """

    Settings: ClassVar[type[MethodSettings]] = FeatureSettings
    Model = HeadCLIP
    model: HeadCLIP
    transfers = False
    checkpoint_has_learner_only = True
    reads_template = reads_sentences = True
    checkpoints_type = HeadCheckpoints
    declares = Method.declares | {"starts_from_images": ("start",), "finishes": ("finish",)}
    spec: ClassVar[FeatureSpec] = FeatureSpec()
    saves_each_epoch = False
    starts_from_images: ClassVar[bool] = False  # whether `start` has an effect
    finishes: ClassVar[bool] = False  # whether `finish` has an effect
    support: Support | None = None  # the features of the training images

    def build_head(self, classes: int, width: int, rows: int) -> Head:
        """The head before it has seen images, by the numbers of classes, features and training
        images.
        """
        raise NotImplementedError

    def start(self, support: Support) -> None:
        """Set what the head starts from."""

    def finish(self) -> None:
        """Choose settings after the last epoch."""

    @property
    def head(self) -> Any:
        return self.model.prompt_learner

    def correct(self) -> int:
        """The number of validation images that the head classifies correctly."""
        features, labels = self.val
        return int(
            (self.model.logits(features, self.model.class_texts).argmax(dim=1) == labels).sum()
        )

    @classmethod
    def check_run(cls, cfg: CfgNode) -> None:
        super().check_run(cfg)
        if not cls.transfers and cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            fault = f"{cls.__name__} has weights for the classes it was trained on"
            raise UsageError(
                f"{fault}: base-to-new has no meaning for it", "set DATASET.SUBSAMPLE_CLASSES all"
            )

    def check_training(self) -> None:
        fault = f"{type(self).__name__} computes its weights from the training images"
        if self.cfg.MODEL.INIT_WEIGHTS and (self.trains_in_one_step or self.starts_from_images):
            raise UsageError(f"MODEL.INIT_WEIGHTS would have no effect: {fault}", "leave it out")
        seen = {item.label for item in self.images.dataset.train_x}
        missing = {*range(len(self.class_names))} - seen
        if missing and self.spec.needs_all:
            fault = (
                f"{type(self).__name__} has no training image of {self.class_names[min(missing)]!r}"
            )
            raise UsageError(fault, "give each class one, or use SSText")

    # The model

    def build_prompts(self, clip: CLIP, classnames: list[str]) -> Head:
        return self.build_head(len(classnames), clip.visual.output_dim, self.n_train)

    def after_build(self) -> None:
        if self.spec.reads_text:
            self.set_texts(self.texts())

    def texts(self) -> Tensor:
        """(classes, joint), fp32: the mean over the templates; not normalised."""
        sentences = self.class_sentences(*self.templates)
        return mean_text_features(self.model.frozen, sentences, self.spec.unit_text)

    def set_texts(self, texts: Tensor) -> None:
        """Give the head these text features (classes, joint), which are not normalised."""
        self.model.class_texts = normalize(texts) if self.spec.unit_text else texts.float()

    @property
    def templates(self) -> tuple[str, ...]:
        """The sentences for a class name."""
        own = not self.cfg.DATASET.get("TEMPLATE", "") and self.cfg.DATASET.NAME in IMAGENETS
        return (own and self.spec.templates_of_imagenet) or (self.template(),)

    def before_load(self, checkpoint: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """Make the head's tensors with a row for each image as long as those of the checkpoint."""
        state = tensors_of(checkpoint)
        labels = self.checkpoints.classes(checkpoint.get("metadata") or {}).checkpoint_labels
        rows: Sequence[int] = ()  # their number, the same for all tensors
        for name in self.spec.row_tensors:
            tensor = attrgetter(name)(self.head)
            there = state.get(name, tensor)
            usable = (
                there.shape[1:] == tensor.shape[1:]
                and there.numel()
                and (labels or name not in self.tensors_by_class)
            )
            rows = rows or (there.shape[:1] if usable else (0,))
            tensor.data = tensor.new_zeros(*rows, *tensor.shape[1:])
        return checkpoint

    # The images

    @property
    def trials(self) -> int:
        return self.spec.trials

    @property
    def chosen_keys(self) -> list[str]:
        """The settings that `val_images` choose."""
        return [
            f"TRAINER.{self.section()}.{key}"
            for key in self.spec.chosen
            if not getattr(self.settings, key)
        ]

    @cached_property
    def choices(self) -> list[SelectionRecord]:
        keys = self.chosen_keys
        if not keys:
            return super().choices
        first = choice(
            keys[0], self.cfg, self.dataset_title, self.val_images, self.images.dataset, self.trials
        )
        return [*super().choices, *(replace(first, what=key) for key in keys)]

    @cached_property
    def val_images(self) -> list:
        """The images that choose settings, by CHOOSE_ON; few-shot validation images of ImageNet are
        as in CoOp's code. Raises UsageError if the dataset has no validation images."""
        dataset = self.images.dataset
        shots = self.cfg.DATASET.NUM_SHOTS
        if getattr(self.settings, "CHOOSE_ON", "validation") == "oracle":
            return dataset.test
        if not dataset.val:
            key, example = next(iter(self.spec.chosen.items()))
            fault = f"{self.dataset_title} has no validation images for the choice of {key}"
            raise UsageError(fault, f"set TRAINER.{self.section()}.{key}, for example to {example}")
        # As it is, it has all test images
        if getattr(dataset, "val_is_test", False) and shots >= 1:
            return dataset.generate_fewshot_dataset(dataset.val, num_shots=min(shots, 4))
        return dataset.val

    @cached_property
    def val(self) -> tuple[Tensor, Tensor]:
        """Features (images, joint), not normalised, and labels (images,) of `val_images`."""
        features = self.features_of(self.val_images)
        return features.views[0], features.labels

    def features_of(self, items: list, views: int = 0) -> Support:
        """The features of images (a list of `Datum`), of augmented views of each or, if that is 0,
        one as in a test. Raises UsageError if a feature is not finite."""
        tests = self.images.test_loader.dataset
        augment = build_transform(self.cfg, is_train=True) if views else tests.transform
        images = images_like(tests, items, augment)
        if views:
            images = ViewsDataset(images, views, max(self.cfg.SEED, 0))
        size = max(1, self.cfg.DATALOADER.TEST.BATCH_SIZE // max(1, views))
        loader = loader_like(self.images.test_loader, images, batch_size=size)
        cached = CachedFeatures(self.model, loader, feature_cache(self.cfg))
        features = cached.tensor().to(self.device).float()
        if not features.isfinite().all():
            fault = f"{self.cfg.MODEL.BACKBONE.NAME} gives image features that are not finite"
            raise UsageError(fault, "give another backbone, or PREC fp32")
        return Support(
            features.movedim(1, 0) if views else features[None], cached.labels.to(self.device)
        )

    @classmethod
    def check_size(cls, images: int, classes: int) -> None:
        """Raise UsageError if a head would need too much memory for so many views of training
        images, and classes.
        """
        pairs = images * classes
        if cls.spec.keeps_pairs and pairs > MOST_PAIRS:
            fault = (
                f"{cls.__name__} has numbers for {images:,} views of images and "
                f"{classes:,} classes, {4 * pairs / 1e9:.1f} GB"
            )
            remedy = f"use fewer images, or GDA: {4 * MOST_PAIRS / 1e9:g} GB are the most"
            raise UsageError(fault, remedy)

    def begin(self, support: Support) -> Batches:
        """Start from the features of the training images; returns the batches of an epoch.

        Raises UsageError as `check_size`.
        """
        self.check_size(len(support.rows), len(self.class_names))
        self.support = support
        self.start(support)
        size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        self.feature_batches = Batches(support, size, self.steps, self.spec.mixed_views)
        return self.feature_batches

    @property
    def steps(self) -> int:
        """Of an epoch."""
        size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        if self.keeps_last_batch:
            return -(-self.n_train // size)
        return max(1, self.n_train // size)

    # Training

    def batches(self, loader: Any) -> Batches:
        """Batches of features, which are computed before the first epoch."""
        if self.support is None:
            images = self.images.dataset.train_x
            self.begin(self.features_of(images, self.settings.AUGMENT_EPOCH))
        return self.feature_batches

    def after_epoch(self) -> None:
        if self.training.is_last_epoch:
            self.finish()


class FittedMethod(FeatureMethod):
    """A method whose head is computed from all features together, in one epoch, by `start` and
    `fit`.
    """

    trains_in_one_step = True

    def fit(self, support: Support) -> None:
        """Set what `start` has not."""

    @classmethod
    def check_run(cls, cfg: CfgNode) -> None:
        super().check_run(cfg)
        if cfg.OPTIM.MAX_EPOCH != 1:
            remedy = f"{cls.__name__} is fitted once: set it to 1"
            raise UsageError(f"OPTIM.MAX_EPOCH is {cfg.OPTIM.MAX_EPOCH}", remedy)

    @torch.no_grad()
    def run_epoch(self, batches: Any) -> None:
        self.fit(batches.support)
