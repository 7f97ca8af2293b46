"""The base of all methods: facts, settings, prompts, loss and training step.

It knows no trainer of Dassl: `trainer.MethodTrainer` has a method, as a prediction and a fit have.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from dassl.metrics import compute_accuracy
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from clip import CLIP, ImageOutput
from common.errors import UsageError
from common.names import plain, title
from common.records import Phase, SelectionRecord

from . import streams
from .checkpoints import find_checkpoint
from .compat import build_schedule, build_transform, optimizer_of
from .data_use import selections_of_run
from .features import cached_features
from .learned import Checkpoints, LearnedClasses
from .prompted import Output, PromptedCLIP, PromptLearner
from .settings import Facts
from .training import Training

TEMPLATE = "a photo of a {}."  # for a dataset that has none of its own


class Classes(NamedTuple):
    """The classes of a prediction: names in the order of their labels, without underscores; a
    sentence with {}; and sentences for some classes, by their names."""

    names: list[str]
    template: str = TEMPLATE
    sentences: Mapping[str, Sequence[str]] = {}


class RunImages(NamedTuple):
    """The images of a run, for a method that computes their features or chooses on them."""

    dataset: Any  # Dassl's, with the lists train_x, val and test
    test_loader: Any  # Dassl's loader of the test images


class Method(Facts):
    """A method with its settings and its model.

    A method sets `Settings` (its keys under TRAINER.<NAME>) and defines `build_prompts`; it may
    override `loss`, and `backward` where one loss is not enough.

    Args:
        cfg: the sections DATASET (NAME and TEMPLATE), INPUT, MODEL (BACKBONE.NAME) and TRAINER of a
            configuration; for training OPTIM and DATALOADER, too.
        classes: to choose from.
        device: of the model, which `build.assemble_model` makes.
        n_train: the number of training images; 0 for a prediction.
        images: those of a run.
    """

    declares = {"reads_views": ("parse_batch_train",)}
    reads_views: ClassVar[bool] = False  # whether a batch may have several views of an image
    Model: ClassVar[type[PromptedCLIP]] = PromptedCLIP
    checkpoints_type: ClassVar[type[Checkpoints]] = Checkpoints
    # `build_trainer(cfg)` is Dassl's trainer of this method: see `trainer`
    build_trainer: ClassVar[Callable[[CfgNode], Any]]
    model: PromptedCLIP
    training: Training  # since `start_training`
    # Behind prompts that were loaded; None: they do not say
    inherited_choices: Sequence[SelectionRecord] | None = ()
    # What these were learned from; None: they do not say
    inherited_phases: Sequence[Phase] | None = ()

    def __init__(
        self,
        cfg: CfgNode,
        classes: Classes,
        device: torch.device,
        n_train: int = 0,
        images: RunImages | None = None,
    ):
        self.cfg = cfg
        self.dataset_title = title(cfg)
        self.device = device
        self.class_names, self.dataset_template, self.sentences = Classes(*classes)
        self.n_train = n_train
        self.images: Any = images

    # Hooks of a method

    def build_prompts(self, clip: CLIP, classnames: list[str]) -> PromptLearner:
        """The prompts of this method for a backbone and class names (no underscores), on the
        backbone's device.
        """
        raise NotImplementedError

    def after_build(self) -> None:
        """Add to `self.model`, on its device, what is computed with the frozen CLIP and not
        learned.
        """

    def log_lines(self) -> list[str]:
        """Lines about the model for the log of a run."""
        return []

    def saved_module(self) -> nn.Module:
        """The module whose state dict is the checkpoint."""
        return self.model.prompt_learner if self.checkpoint_has_learner_only else self.model

    @classmethod
    def of_published_file(cls, content: Any, path: str, settings: Any) -> Any:
        """A checkpoint, with `state_dict` and `epoch`, from the content of a `published_file`.
        Raises UsageError if it is of other settings."""
        raise NotImplementedError

    def before_load(self, checkpoint: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """The checkpoint to load instead of one from a file; the method may also prepare its
        tensors.
        """
        return checkpoint

    def after_load(self, classes: LearnedClasses) -> None:
        """Compute what depends on the classes that the prompts were learned on."""

    @classmethod
    def vision_lengths(cls, settings: Any, layers: int) -> list[int] | None:
        """Number of vision prompts in the input of each layer, for plots; None if the method does
        not say.
        """
        return None

    @classmethod
    def test_transform(cls, cfg: CfgNode) -> Callable[[Image.Image], Tensor]:
        """The transform of test images by the section INPUT: from a PIL image in RGB to a tensor
        (3, H, W).
        """
        return build_transform(cfg, is_train=False)

    @torch.no_grad()
    def model_inference(self, images: Tensor | ImageOutput) -> Tensor:
        """(batch, 3, H, W), or the output of the image tower for them -> logits (batch, classes),
        in fp32.
        """
        return self.model(images)

    # A test

    def test_loader(self, loader: Any) -> Any:
        """How the images of a test are read, from Dassl's loader of them."""
        return loader

    def predict_loader(self, loader: Any, folder: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The logits (batch, classes) and labels (batch,) of a loader's images, batch by batch.

        The features of a frozen image tower without prompts are kept in the folder CACHE for other
        runs. `folder` is that of the run: a test of single images keeps there what it has done.
        """
        for batch in cached_features(self.cfg, self.model, loader) or loader:
            images, labels = self.parse_batch(batch)
            yield self.model_inference(images), labels

    # Training

    def check_training(self) -> None:
        """Check what only training needs: a test or a prediction may have other classes. Raises
        UsageError if the settings do not fit the classes to learn."""

    def start_training(self, epochs: int, batches: int) -> None:
        """Make the state of a training of so many epochs, of so many batches each. Raises
        UsageError if nothing is learned, or the settings do not fit."""
        if not self.saved_module().state_dict():
            fault = f"{type(self).__name__} has nothing to train with these settings"
            raise UsageError(fault, "change them, or set `learns = False`")
        self.training = Training(epochs, batches, self.device, self.amp)
        if any(True for _ in self.model.parameters()):
            self.training.optim, self.training.sched = self.build_optimizer()

    def build_optimizer(self) -> tuple[Optimizer, LRScheduler]:
        """The optimiser of the learned parameters, and its schedule."""
        optimizer = optimizer_of(self.model, self.cfg.OPTIM)
        return optimizer, self.build_schedule(optimizer)

    def build_schedule(self, optimizer: Optimizer) -> LRScheduler:
        """The schedule of the learning rate: by steps if `schedule_steps`, else by epochs."""
        return build_schedule(optimizer, self.cfg.OPTIM)

    def published_value(self, key: str) -> Any:
        """The value of one of `published_keys`. A plain node of yacs, which the published Dassl
        has, may hold None for the default.
        """
        group, _, name = key.rpartition(".")
        value = self.cfg[group][name]
        return self.published_keys[key][0] if value is None else value

    def batches(self, loader: Any) -> Any:
        """The batches of the present epoch, from a loader of the training images."""
        return loader

    def run_epoch(self, batches: Iterable[Any]) -> None:
        """Learn from the batches of an epoch."""
        for batch in batches:
            self.training_step(batch)
        self.training.end_batches(self.schedule_steps)

    def after_epoch(self) -> None:
        """Called after each epoch, before it is validated and saved."""

    def run_state(self) -> dict[str, Any]:
        """State of a resumed run besides the model: plain values and tensors."""
        return {}

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `run_state` returned."""

    def parse_batch(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, H, W) and labels (batch,) on the method's device."""
        images, labels = (batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))
        return images, labels

    def parse_batch_train(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """`parse_batch` in training."""
        return self.parse_batch(batch)

    def training_step(self, batch: Mapping[str, Any]) -> dict[str, float | Tensor]:
        """A step of the optimiser; what is logged is a number or, so that nothing waits for a GPU,
        a tensor there.
        """
        training = self.training
        logged = self.both_passes(*self.parse_batch_train(batch))
        training.check_loss(logged["loss"])
        training.scaler.step(training.optim)
        training.scaler.update()
        if self.schedule_steps:
            training.sched.step()
        return {name: value if value.is_cuda else value.item() for name, value in logged.items()}

    def both_passes(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The forward and the backward pass: leaves the gradient in the learned parameters, returns
        the numbers to log.
        """
        with self.autocast():
            output = self.model.output(images)
            loss, parts = self.loss(output, labels)
        self.training.optim.zero_grad()
        self.backward(loss, parts)
        logged = {"loss": loss, "acc": compute_accuracy(output.logits, labels)[0], **parts}
        return {name: value.detach() for name, value in logged.items()}

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and parts of it to be logged.

        Args:
            output: the forward pass of a batch.
            labels: (batch,).
        """
        return F.cross_entropy(output.logits, labels), {}

    def backward(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Leave the gradient of the step, scaled by `self.scaler`, in the learned parameters.

        Args:
            loss, parts: as `loss()` returned them. A method that combines gradients of several
                losses overrides this; zeroing, unscaling, the step and the scaler's update stay
                where they are. What it adds to `parts` is logged.
        """
        self.scaler.scale(loss).backward()

    @property
    def scaler(self) -> torch.amp.GradScaler:
        return self.training.scaler

    @property
    def amp(self) -> bool:
        return self.settings.PREC == "amp"

    def autocast(self) -> AbstractContextManager:
        """The forward pass of PREC amp: fp16 products on CUDA, bf16 on a CPU."""
        if not self.amp:  # not `enabled=False`, which would end an autocast around the method
            return nullcontext()
        return torch.autocast(
            self.device.type, torch.bfloat16 if self.device.type == "cpu" else torch.float16
        )

    # What follows from the configuration and the dataset

    @classmethod
    def check_run(cls, cfg: CfgNode) -> None:
        """Check what only a run needs of its configuration. Raises UsageError if it cannot work."""
        views = cfg.DATALOADER.K_TRANSFORMS
        if views > 1 and not cls.reads_views:
            raise UsageError(
                f"DATALOADER.K_TRANSFORMS is {views}", f"set it to 1 for {cls.__name__}"
            )
        if cls.finishes and cfg.TEST.FINAL_MODEL == "best_val" and cfg.OPTIM.MAX_EPOCH > 1:
            fault = f"{cls.__name__} is complete only after the last epoch"
            remedy = "set TEST.FINAL_MODEL last_step"
            raise UsageError(f"TEST.FINAL_MODEL is best_val, and {fault}", remedy)
        if cfg.TEST.get("STREAM", ""):
            streams.check_stream(cfg, cls.__name__, cls.is_transductive, cls.depends_on_order)

    @classmethod
    def checkpoint_in(cls, directory: str, epoch: int | None) -> str:
        """Path of the checkpoint that `load_model` loads; UsageError if there is none."""
        return find_checkpoint(
            directory, cls.checkpoint_folder, epoch, cls.__name__, cls.published_file
        )

    @cached_property
    def settings(self) -> Any:
        """The method's settings in this run, an instance of `Settings`."""
        return self.settings_of(self.cfg)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        return self.checkpoints_type(self)

    def folder_of_run(self, text: str) -> str:
        """The path of another run in a setting, whose {seed} and {shots} are those of this run."""
        folder = text.replace("{seed}", str(self.cfg.get("SEED", "")))
        return folder.replace("{shots}", str(self.cfg.DATASET.get("NUM_SHOTS", "")))

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts from an output folder, as `Checkpoints.read` says; nothing if
        nothing is learned.
        """
        if self.learns:
            self.checkpoints.read(directory, epoch)

    @cached_property
    def choices(self) -> list[SelectionRecord]:
        """What training chooses on images, and on which (data_use.py). A method that chooses a
        setting adds it.
        """
        if not self.learns:
            return []
        return selections_of_run(self.cfg, self.dataset_title, self.images.dataset)

    def inherit(self, choices: list[SelectionRecord]) -> None:
        """Add choices that were made before this run to those that its checkpoints name."""
        self.inherited_choices = [*(self.inherited_choices or []), *choices]

    def template(self, published: Mapping[str, str] | None = None) -> str:
        """The sentence with {} for a class name: the user's, else the method's, else the dataset's.

        `published` are the method's own sentences for some datasets, by their registered names.
        """
        own = (
            ""
            if self.cfg.DATASET.get("TEMPLATE", "")
            else (published or {}).get(self.cfg.DATASET.NAME, "")
        )
        return own or self.dataset_template

    def own_sentences(self) -> list[list[str]]:
        """The sentences of each class in DATASET.SENTENCES. Raises UsageError for a class without
        one.
        """
        texts = self.class_sentences()
        for name, of_class in zip(self.class_names, texts, strict=True):
            if not of_class:
                raise UsageError(
                    f"{name!r} has no sentence", "give it some in the file of DATASET.SENTENCES"
                )
        return texts

    def class_sentences(self, *templates: str) -> list[list[str]]:
        """The sentences of each class with its name: its own (DATASET.SENTENCES), or else the
        templates.
        """
        own = {plain(name): texts for name, texts in self.sentences.items()}
        return [
            [text.replace("{}", name) for text in own.get(name) or templates]
            for name in self.class_names
        ]
