"""The trainer of every method: Dassl's loop with the training step of prompts on a frozen CLIP."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_checkpoint, load_pretrained_weights
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from clip import TOWERS, compiled_towers
from clip.anatomy import reads_as_clip
from clip.blocks import is_standard
from common.errors import UsageError
from common.names import check_known_names

from .build import assemble_model, print_backbone
from .checkpoints import is_checkpoint
from .data_use import inherited, joined
from .features import cached_features
from .method import Classes, Method
from .prompted import Output

Outputs = Iterator[tuple[Tensor, Tensor]]


class PromptTrainer(Method, TrainerX):
    """A prompt-learning method on a frozen CLIP, as a trainer of Dassl.

    A method sets `Settings` (its keys under TRAINER.<NAME>) and defines `build_prompts`; it may
    override `loss`, and `backward` where one loss is not enough.

    Args:
        cfg: of the run.
        classes, device: of a prediction. It has neither images nor an optimiser, and only what
            `Method` has works.
    """

    divergence_remedy: ClassVar[str] = "lower OPTIM.LR or use PREC fp32"
    persistent_workers: ClassVar[bool] = True  # of the loaders of the toolbox
    optim: Any = None
    sched: Any = None
    schedule_steps: ClassVar[bool] = (
        False  # whether the learning rate changes after each step, not each epoch
    )

    def __init__(
        self, cfg: CfgNode, classes: Classes | None = None, device: torch.device | None = None
    ):
        if classes is None:
            TrainerX.__init__(self, cfg)
        else:
            Method.__init__(self, cfg, classes, device or torch.device("cpu"))

    def check_training(self) -> None:
        """Check what only training needs: a test or a prediction may have other classes. Raises
        UsageError if the settings do not fit the classes to learn."""

    def loss(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and parts of it to be logged.

        Args:
            output: the forward pass of a batch.
            labels: (batch,).
        """
        return F.cross_entropy(output.logits, labels), {}

    def check_cfg(self, cfg: CfgNode) -> None:
        """Check the settings; Dassl calls this first. Raises UsageError if a value cannot work."""
        self.cfg = cfg  # Dassl sets it only later
        self.check_settings(cfg)
        views = cfg.DATALOADER.K_TRANSFORMS
        if views > 1 and type(self).parse_batch_train is PromptTrainer.parse_batch_train:
            raise UsageError(
                f"DATALOADER.K_TRANSFORMS is {views}", f"set it to 1 for {type(self).__name__}"
            )

    def build_model(self) -> None:
        cfg = self.cfg
        towers = cfg.MODEL.BACKBONE.get("TOWERS", "fast")
        check_known_names(self.class_names, self.dataset_title)
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        assemble_model(self, towers)
        print_backbone(cfg, self.model.clip, self.settings.PREC, self.device)
        for note in self.notes():
            print(note)
        if cfg.MODEL.get("COMPILE", False):
            self.compile_towers()
        recompute = cfg.MODEL.BACKBONE.get("CHECKPOINT_TEXT", False)
        clip = self.model.clip
        if recompute and not (
            towers == "fast" and reads_as_clip(clip) and is_standard(clip.transformer)
        ):
            print("MODEL.BACKBONE.CHECKPOINT_TEXT is ignored: it needs the fast towers")
        clip.transformer.grad_checkpointing = recompute
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp and self.device.type != "cpu"
        )
        print(f"Learned parameters: {count_num_param(self.model):,}")
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.saved_module(), cfg.MODEL.INIT_WEIGHTS)
            start = load_checkpoint(cfg.MODEL.INIT_WEIGHTS)
            choices, phases = inherited(start) if is_checkpoint(start) else (None, None)
            self.inherited_choices = joined(self.inherited_choices, choices)
            self.inherited_phases = joined(self.inherited_phases, phases)
        if self.learns:
            self.register()

    def register(self) -> None:
        """Register what is learned with Dassl: with its optimiser, if it is learned by
        gradients.
        """
        if not self.saved_module().state_dict():
            what = f"{type(self).__name__} has nothing to train with these settings"
            raise UsageError(what, "change them, or set `learns = False`")
        if any(True for _ in self.model.parameters()):
            self.optim, self.sched = self.build_optimizer()
        self.register_model(self.saved_as, self.saved_module(), self.optim, self.sched)

    def build_optimizer(self) -> tuple[Optimizer, LRScheduler]:
        """The optimiser of the learned parameters, and its schedule."""
        optimizer = build_optimizer(self.model, self.cfg.OPTIM)
        return optimizer, self.build_schedule(optimizer)

    def build_schedule(self, optimizer: Optimizer) -> LRScheduler:
        """The schedule of the learning rate: by steps if `schedule_steps`, else by epochs."""
        return build_lr_scheduler(optimizer, self.cfg.OPTIM)

    def compile_towers(self) -> None:
        """MODEL.COMPILE: put the towers' layers through torch.compile, or print why not."""
        if (
            self.device.type != "cuda"
            or self.model.towers is not TOWERS["fast"]
            or find_spec("triton") is None
        ):
            print("MODEL.COMPILE is ignored: it needs a GPU, Triton and the fast towers")
        else:
            self.model.towers = compiled_towers()

    @property
    def amp(self) -> bool:
        return self.settings.PREC == "amp"

    def autocast(self):
        """The forward pass of PREC amp: fp16 products on CUDA, bf16 on a CPU."""
        if not self.amp:  # not `enabled=False`, which would end an autocast around the trainer
            return nullcontext()
        return torch.autocast(
            self.device.type, torch.bfloat16 if self.device.type == "cpu" else torch.float16
        )

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, H, W) and labels (batch,) on the trainer's device."""
        images, labels = (batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))
        return images, labels

    def forward_backward(self, batch: dict) -> dict[str, float | Tensor]:
        """A training step; what is logged is a number or, so that nothing waits for a GPU, a tensor
        there.
        """
        logged = self.both_passes(*self.parse_batch_train(batch))
        self.detect_anomaly(logged["loss"])
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.schedule_steps or self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {name: value if value.is_cuda else value.item() for name, value in logged.items()}

    def both_passes(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The forward and the backward pass: leaves the gradient in the learned parameters, returns
        what is logged.
        """
        with self.autocast():
            output = self.model.output(images)
            loss, parts = self.loss(output, labels)
        self.optim.zero_grad()
        self.backward(loss, parts)
        logged = {"loss": loss, "acc": compute_accuracy(output.logits, labels)[0], **parts}
        return {name: value.detach() for name, value in logged.items()}

    def backward(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Leave the gradient of the step, scaled by `self.scaler`, in the learned parameters.

        Args:
            loss, parts: as `loss()` returned them. A method that combines gradients of several
                losses overrides this; zeroing, unscaling, the step and the scaler's update stay
                where they are. What it adds to `parts` is logged.
        """
        self.scaler.scale(loss).backward()

    def before_train(self) -> None:
        self.check_training()
        warmup = getattr(self.sched, "warmup_epoch", 0)  # some methods have a schedule without
        if 0 < self.max_epoch <= warmup:
            what = f"OPTIM.WARMUP_EPOCH is {warmup} and MAX_EPOCH is {self.max_epoch}"
            print(f"{what}: the learning rate stays below OPTIM.LR in all epochs")
        super().before_train()

    def set_model_mode(self, mode: str = "train", names=None) -> None:
        self.model.train(mode == "train")  # also where a part of it is saved, or nothing
        super().set_model_mode(mode, names)

    def test_outputs(self, loader: Any) -> Outputs:
        """The logits (batch, classes) and labels (batch,) of a loader's images, batch by batch.

        The features of a frozen image tower without prompts are kept in the folder CACHE for other
        runs.
        """
        yield from super().test_outputs(cached_features(self.cfg, self.model, loader) or loader)

    # Checkpoints

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts from an output folder, as `Checkpoints.read` says; nothing if
        nothing is learned.
        """
        if self.learns:
            self.checkpoints.read(directory, epoch)

    def checkpoint_metadata(self) -> dict[str, Any]:
        """The facts in a checkpoint besides its learned tensors."""
        return self.checkpoints.training_metadata()

    def check_metadata(self, written: Mapping[str, Any]) -> None:
        """Raise UsageError if a run with this metadata in its checkpoint cannot be resumed."""
        self.checkpoints.check_resumed(written)
