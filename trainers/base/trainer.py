"""What every prompt trainer shares: settings, precision, the training step, learned-prompts-only checkpoints."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_checkpoint, load_pretrained_weights
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import CLIP, TOWERS, ImageOutput, compiled_towers, current_ranks
from clip.digest import digest
from common.errors import UsageError
from common.names import check_known_names
from common.version import __version__

from .build import build_model, print_normalisation
from .checkpoints import find_checkpoint, is_checkpoint, select_prompts
from .data_use import Choice, epoch_choice, inherited_choices
from .features import cache_folder, kept_features
from .precision import print_precision, usable
from .prompted import Output, PromptedCLIP, PromptLearner
from .settings import MethodSettings, settings_from
from .split_test import outputs_of_ranks

TEMPLATE = "a photo of a {}."  # for a dataset that has none of its own


class PromptTrainer(TrainerX):
    """A prompt-learning method on a frozen CLIP.

    A method sets `Settings` (its keys under TRAINER.<NAME>) and defines `build_prompts`; it may override `loss`, and
    `backward` where one loss is not enough.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    defaults: ClassVar[dict[str, Any]] = {}  # a short form of `Settings`, for settings that need no checks
    published_sections: ClassVar[tuple[str, ...]] = ()  # other names of its section, in published YAML files
    saved_as: ClassVar[str] = "prompt_learner"  # folder of the checkpoints in the output folder
    published: ClassVar[tuple[str, ...]] = ()  # names of its learned tensors in published checkpoints; * is any text
    published_unused: ClassVar[tuple[str, ...]] = ()  # tensors there that look learned, and take no part in it
    learns: ClassVar[bool] = True  # False: there is nothing to train
    transfers: ClassVar[bool] = True  # False: what it learns is of its own classes, so that it cannot tell new ones
    Model: ClassVar[type[PromptedCLIP]] = PromptedCLIP
    caveat: ClassVar[str] = ""  # what of its published results does not compare; tables show it, with a full stop
    config_folder: ClassVar[str] = ""  # of its YAML files in configs/trainers/; by default its name
    divergence_remedy: ClassVar[str] = "lower OPTIM.LR or use PREC fp32"
    dm: Any
    evaluator: Any

    def __init_subclass__(cls) -> None:
        if "defaults" in vars(cls):
            if "Settings" in vars(cls):
                raise TypeError(f"{cls.__name__} has both Settings and defaults: define one of them")
            cls.Settings = settings_from(cls.defaults, cls.Settings)
        cls.config_folder = vars(cls).get("config_folder", cls.__name__)

    def __init__(self, cfg: CfgNode):
        self.inherited_choices: list[Choice] | None = []  # behind prompts that were loaded; None: they do not say
        super().__init__(cfg)

    @classmethod
    def section(cls) -> str:
        """The method's key under TRAINER."""
        return cls.__name__.upper()

    @classmethod
    def settings_of(cls, cfg: CfgNode) -> Any:
        """The method's settings in a configuration.

        Raises:
            UsageError: a value cannot work.
        """
        return cls.Settings.from_cfg(cfg.TRAINER.get(cls.section(), {}), cls.section())

    @classmethod
    def vision_lengths(cls, settings: Any, layers: int) -> list[int] | None:
        """Number of vision prompts in the input of each layer, for plots; None if the method does not say."""
        return None

    @cached_property
    def settings(self) -> Any:
        """The method's settings in this run, an instance of `Settings`."""
        return self.settings_of(self.cfg)

    @cached_property
    def choices(self) -> list[Choice]:
        """What training chooses on images, and on which (data_use.py). A method that chooses a setting adds it."""
        return epoch_choice(self.cfg, self.dataset_title, self.dm.dataset)

    def build_prompts(self, clip: CLIP, classnames: list[str]) -> PromptLearner:
        """The prompts of this method for a backbone and class names (no underscores), on the backbone's device.

        Predictions have no images: see `build.without_training` for what this may use.
        """
        raise NotImplementedError

    def finish_model(self) -> None:
        """Add to `self.model`, on its device, what is computed with the frozen CLIP and not learned."""

    def notes(self) -> list[str]:
        """Lines about the model for the log of a run."""
        return []

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and parts of it to be logged.

        Args:
            output: the forward pass of a batch.
            labels: (batch,).
        """
        return F.cross_entropy(output.logits, labels), {}

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the run's classes, in the order of their labels, without underscores.

        Raises:
            UsageError: a label has no name, so that other labels would get wrong names.
        """
        names, n_classes = self.dm.dataset.classnames, self.dm.num_classes
        if len(names) != n_classes:
            raise UsageError(
                f"{self.dataset_title} has {len(names)} class names for labels 0 to {n_classes - 1}",
                "number its classes without gaps",
            )
        return [name.replace("_", " ") for name in names]

    @cached_property
    def dataset_template(self) -> str:
        """The dataset's sentence with {} for a class name."""
        return getattr(self.dm.dataset, "template", TEMPLATE)

    @property
    def dataset_title(self) -> str:
        """The name of the dataset, as results and checkpoints have it."""
        return self.cfg.DATASET.get("TITLE", "") or self.cfg.DATASET.NAME

    def template(self, published: Mapping[str, str] | None = None) -> str:
        """The sentence with {} for a class name: the user's, else the method's, else the dataset's.

        Args:
            published: the method's own sentences for some datasets, by their registered names.
        """
        own = "" if self.cfg.DATASET.get("TEMPLATE", "") else (published or {}).get(self.cfg.DATASET.NAME, "")
        return own or self.dataset_template

    def check_cfg(self, cfg: CfgNode) -> None:
        """Check the settings; Dassl calls this first.

        Raises:
            UsageError: a value cannot work.
        """
        self.cfg = cfg  # Dassl sets it only later
        _ = self.settings, cache_folder(cfg)
        views = cfg.DATALOADER.K_TRANSFORMS
        if views > 1 and type(self).parse_batch_train is PromptTrainer.parse_batch_train:
            raise UsageError(f"DATALOADER.K_TRANSFORMS is {views}", f"set it to 1 for {type(self).__name__}")

    def build_model(self) -> None:
        cfg = self.cfg
        towers = cfg.MODEL.BACKBONE.get("TOWERS", "fast")
        if towers not in TOWERS:
            raise UsageError(f"MODEL.BACKBONE.TOWERS is {towers!r}", f"it can be {' or '.join(TOWERS)}")
        check_known_names(self.class_names, self.dataset_title)
        print_precision(self.settings.PREC, self.device)
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        build_model(self, towers)
        print_normalisation(cfg, self.model.clip)
        for note in self.notes():
            print(note)
        if cfg.MODEL.get("COMPILE", False):
            self.compile_towers()
        self.model.clip.transformer.grad_checkpointing = cfg.MODEL.BACKBONE.get("CHECKPOINT_TEXT", False)
        self.amp = usable(self.settings.PREC, self.device) == "amp"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp and self.device.type != "cpu")
        print(f"Learned parameters: {count_num_param(self.model):,}")
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.saved_module(), cfg.MODEL.INIT_WEIGHTS)
            start = load_checkpoint(cfg.MODEL.INIT_WEIGHTS)
            self.inherited_choices = inherited_choices(start) if is_checkpoint(start) else None
        if any(True for _ in self.model.parameters()):
            self.optim = build_optimizer(self.model, cfg.OPTIM)
            self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
            self.register_model(self.saved_as, self.saved_module(), self.optim, self.sched)

    def compile_towers(self) -> None:
        """MODEL.COMPILE: put the towers' layers through torch.compile, or print why not."""
        if self.device.type != "cuda" or self.model.towers is not TOWERS["fast"] or find_spec("triton") is None:
            print("MODEL.COMPILE is ignored: it needs a GPU, Triton and the fast towers")
        else:
            self.model.towers = compiled_towers()

    def saved_module(self) -> nn.Module:
        """The module whose state dict is the checkpoint."""
        return self.model

    def autocast(self):
        """The forward pass of PREC amp: fp16 products on CUDA, bf16 on a CPU."""
        if not self.amp:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.device.type == "cpu" else torch.float16)

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, H, W) and labels (batch,) on the trainer's device."""
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def forward_backward(self, batch: dict) -> dict[str, float]:
        images, labels = self.parse_batch_train(batch)
        with self.autocast():
            output = self.model.output(images)
            loss, parts = self.loss(output, labels)
        self.detect_anomaly(loss)
        self.optim.zero_grad()
        self.backward(loss, parts)
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        accuracy = compute_accuracy(output.logits, labels)[0]
        return {name: value.item() for name, value in {"loss": loss, "acc": accuracy, **parts}.items()}

    def backward(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Leave the gradient of the step, scaled by `self.scaler`, in the learned parameters.

        Args:
            loss, parts: as `loss()` returned them. A method that combines gradients of several losses overrides this;
                zeroing, unscaling, the step and the scaler's update stay where they are. What it adds to `parts` is
                logged.
        """
        self.scaler.scale(loss).backward()

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Describes a checkpoint beside its learned tensors: plain values only."""
        choices = {"choices": self.choices, "inherited_choices": self.inherited_choices or []}
        return self.prompts_metadata() | choices

    def prompts_metadata(self) -> dict[str, Any]:
        """The part of `checkpoint_metadata` that says what the prompts fit."""
        return {
            "method": type(self).__name__,
            "settings": asdict(self.settings),
            "backbone": self.cfg.MODEL.BACKBONE.NAME,
            "dataset": self.dataset_title,
            "class_names": self.class_names,
            "version": __version__,
        }

    def before_train(self) -> None:
        ranks = current_ranks()
        if not ranks.first:
            super().before_train()
        ranks.objects(None)  # all others have read the checkpoints: rank 0 may delete some
        if ranks.first:
            super().before_train()
        if ranks.count > 1:
            ranks.agree({"first epoch": self.start_epoch, "start of the prompts": digest(self.model.state_dict())})

    # Of several ranks the first one writes.

    def save_model(self, *arguments: Any, **options: Any) -> None:
        if current_ranks().first:
            super().save_model(*arguments, **options)

    def _remove_stale(self, newest: int) -> None:
        if current_ranks().first:
            super()._remove_stale(newest)

    def init_writer(self, log_dir: str) -> None:
        if current_ranks().first:
            super().init_writer(log_dir)

    def set_model_mode(self, mode: str = "train", names=None) -> None:
        self.model.train(mode == "train")  # also where a part of it is saved, or nothing
        super().set_model_mode(mode, names)

    def test_outputs(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """The logits (batch, classes) and labels (batch,) of a loader's images, batch by batch.

        Several ranks divide the batches. The features of a frozen image tower without prompts are kept in the folder
        CACHE for other runs.
        """
        ranks = current_ranks()
        if ranks.count > 1:
            yield from outputs_of_ranks(super().test_outputs, loader, ranks)
        else:
            yield from super().test_outputs(kept_features(self.cfg, self.model, loader) or loader)

    def test_metrics(self) -> dict[str, float]:
        return current_ranks().from_first(super().test_metrics)  # the first rank prints them, and may write files

    @torch.no_grad()
    def model_inference(self, images: Tensor | ImageOutput) -> Tensor:
        """(batch, 3, H, W), or the output of the image tower for them -> logits (batch, classes), in fp32."""
        return self.model(images)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts from a checkpoint of this project or of the published code, at any class count.

        Args:
            directory: the output folder of a training run; nothing is loaded if empty (as everywhere in Dassl).
            epoch: which epoch's; None means the best on validation or, without validation, the newest.

        Raises:
            UsageError: no checkpoint there, or it lacks prompts of these settings, or has more of them.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        current_ranks().objects(None)  # rank 0 may have written it just now
        path = find_checkpoint(directory, self.saved_as, epoch, type(self).__name__)
        checkpoint = load_checkpoint(path)
        if not is_checkpoint(checkpoint):
            raise UsageError(f"{path} is not a checkpoint of a training run", "check --model-dir", path)
        self.load_prompts(checkpoint, path)
        if type(self.model.prompt_learner).image is not PromptLearner.image:
            kind = "learned" if self.model.classes_learned else "new"
            print(f"Images are read as those of {kind} classes")
        backbone = self.cfg.MODEL.BACKBONE.NAME
        learned_on = (checkpoint.get("metadata") or {}).get("backbone", backbone)
        if learned_on != backbone:
            print(f"These prompts were learned on the backbone {learned_on}, this run uses {backbone}")
        print(f"Loading prompts from {path} (epoch {checkpoint['epoch']})")

    def load_prompts(self, checkpoint: Mapping[str, Any], path: str) -> None:
        """Load the learned prompts among everything that a checkpoint holds.

        Args:
            checkpoint: its content.
            path: where it is from, for errors.

        Raises:
            UsageError: as for `load_model`.
        """
        module, metadata = self.saved_module(), self.prompts_metadata()
        module.load_state_dict(select_prompts(checkpoint, path, metadata, module.state_dict()))
        self.loaded_epoch = checkpoint["epoch"]
        self.inherited_choices = inherited_choices(checkpoint)
        self.model.classes_learned = self.were_learned(checkpoint.get("metadata") or {})

    def were_learned(self, written: Mapping[str, Any]) -> bool:
        """Whether prompts were learned on all classes of this run, by the metadata of their checkpoint.

        Published checkpoints do not say on what they were learned: on these classes, unless they are `new` ones.
        """
        names = written.get("class_names")
        if not isinstance(names, list):
            return self.cfg.DATASET.get("SUBSAMPLE_CLASSES", "all") != "new"
        same_dataset = written.get("dataset", self.dataset_title) in (self.dataset_title, self.cfg.DATASET.NAME)
        return same_dataset and all(name in names for name in self.class_names)
