"""The trainer of every method: Dassl's run around it. A method's model is built in the same way
for a run and for predictions.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from dassl.engine import TrainerX
from dassl.utils import count_num_param, load_pretrained_weights
from torch import Tensor
from yacs.config import CfgNode

from clip import CLIP, TOWERS, ClipError, compiled_towers, image_tower, load_backbone
from clip.anatomy import reads_as_clip
from clip.blocks import is_standard
from common.errors import UsageError
from common.names import check_known_names, plain, title

from .checkpoints import PROMPTS, described, is_checkpoint
from .compat import check_resumed, read_checkpoint
from .data_use import inherited, joined
from .method import TEMPLATE, Classes, Method, RunImages

if TYPE_CHECKING:
    from .method import Method

UNITS = {"fp16": "a GPU", "bf16": "a CPU or GPU with bf16 units"}


def assemble_model(method: "Method", towers: str = "fast", clip: CLIP | None = None) -> None:
    """Set `method.model`: the frozen backbone under the prompts that training starts from, on
    `method.device`.

    The prompts are built where the backbone is, on the CPU if it is loaded here. A backbone that is
    on `method.device` already is not moved, so that other models may compute with it meanwhile.

    Args:
        method: of a run, a fit or a prediction.
        towers: the form of the towers, a key of `clip.TOWERS`.
        clip: the backbone, if it is loaded already.

    Raises UsageError if the backbone does not exist, reads images of another size, or does not fit
    the method.
    """
    cfg = method.cfg
    device = method.device
    if clip is None:
        clip = backbone_of(method)
        side = clip.visual.image_size
        expected = tuple(side) if isinstance(side, tuple | list) else (side, side)
        if tuple(cfg.INPUT.SIZE) != expected:
            fault = (
                f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {cfg.MODEL.BACKBONE.NAME} reads "
                f"{expected}"
            )
            raise UsageError(fault, "give that as INPUT.SIZE, or a YAML for this backbone")
    with clip.logit_scale.device:
        prompts = method.build_prompts(clip, method.class_names)
    method.model = method.Model(clip, prompts, towers)
    if clip.logit_scale.device.type != device.type:
        method.model.to(device)
    method.after_build()


def backbone_of(method: "Method") -> CLIP:
    """The backbone of a method, from its file, in the precision that PREC means here."""
    precision = usable(method.settings.PREC, method.device)
    name = method.cfg.MODEL.BACKBONE.NAME
    return load_backbone(name, "fp32" if precision == "amp" else precision)


def require_vit(clip: CLIP, method: str, backbone: str) -> None:
    """Raise UsageError for a backbone whose image tower takes no prompts, such as a ResNet."""
    try:
        image_tower(clip)
    except ClipError as error:
        fault = (
            f"{method} needs a vision transformer such as ViT-B/16, and {backbone} is not one "
            f"({error.fault})"
        )
        remedy = (
            "choose another, or a method of texts or features, such as CoOp, KgCoOp, TaskRes "
            "or TipAdapterF"
        )
        raise UsageError(fault, remedy) from error


def usable(precision: str, device: torch.device) -> str:
    """The precision of PREC on a device; fp32 where the device does not multiply faster in fp16 or
    bf16.
    """
    if precision not in UNITS:
        return precision
    if device.type == "cpu":
        has_units = precision == "bf16" and cpu_has_bf16()
    else:
        has_units = precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return precision if has_units else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for products of bf16 (AVX512-BF16, AMX or Arm's), as Linux
    lists them.
    """
    info = Path("/proc/cpuinfo")
    return info.is_file() and bool(re.search(r"\b(avx512_|amx_)?bf16\b", info.read_text()))


def print_backbone(cfg: CfgNode, clip: CLIP, precision: str, device: torch.device) -> None:
    """Print what PREC means on the device, and which values of the images' normalisation the
    backbone did not have.
    """
    if precision in UNITS and usable(precision, device) == precision:
        print(f"PREC {precision}: training and evaluation compute in {precision}")
    elif precision in UNITS:
        print(f"PREC {precision} needs {UNITS[precision]}: computing in fp32")
    for key, attribute in (("PIXEL_MEAN", "image_mean"), ("PIXEL_STD", "image_std")):
        trained = getattr(clip.visual, attribute, None)
        if trained and any(abs(a - b) > 1e-6 for a, b in zip(trained, cfg.INPUT[key], strict=True)):
            print(
                f"INPUT.{key} is {cfg.INPUT[key]}, {cfg.MODEL.BACKBONE.NAME} was trained with "
                f"{list(trained)}"
            )


class MethodTrainer(TrainerX):
    """Dassl's trainer of a method, `self.method`: data, epochs, checkpoints and tests of a run.

    Args:
        cfg: of the run.
        method_class: the method.
    """

    method: Method
    divergence_remedy: ClassVar[str] = "lower OPTIM.LR or use PREC fp32"
    persistent_workers: ClassVar[bool] = True  # of the loaders of the toolbox
    observers: Any = ()  # the published Dassl has none

    def __init__(self, cfg: CfgNode, method_class: type[Method]):
        self.method_class = method_class
        super().__init__(cfg)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Check the settings; Dassl calls this first. Raises UsageError if a value cannot work."""
        self.method_class.check_settings(cfg)
        self.method_class.check_run(cfg)

    def build_model(self) -> None:
        cfg = self.cfg
        dataset = self.dm.dataset
        images = RunImages(dataset, self.dm.test_loader)
        classes = classes_of(self.dm, title(cfg))
        method = self.method_class(cfg, classes, self.device, len(dataset.train_x), images)
        self.method = method
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        assemble_model(method, cfg.MODEL.BACKBONE.get("TOWERS", "fast"))
        self.model = method.model
        print_backbone(cfg, self.model.clip, method.settings.PREC, self.device)
        for note in method.log_lines():
            print(note)
        if cfg.MODEL.get("COMPILE", False) or cfg.MODEL.BACKBONE.get("CHECKPOINT_TEXT", False):
            self.set_towers()
        print(f"Learned parameters: {count_num_param(self.model):,}")
        if cfg.MODEL.INIT_WEIGHTS:
            self.load_start(cfg.MODEL.INIT_WEIGHTS)
        self.test_loader = method.test_loader(self.dm.test_loader)
        self.val_loader = self.dm.val_loader and method.test_loader(self.dm.val_loader)
        if not method.learns:
            return
        if method.keeps_last_batch:
            self.dm.train_loader_x.batch_sampler.drop_last = False
        method.start_training(self.max_epoch, len(self.dm.train_loader_x))
        training = method.training
        training.check_loss = self.detect_anomaly
        self.scaler = training.scaler
        self.optim = training.optim
        self.sched = training.sched
        self.register_model(method.checkpoint_folder, method.saved_module(), self.optim, self.sched)

    def set_towers(self) -> None:
        """MODEL.COMPILE and CHECKPOINT_TEXT; print where they have no effect."""
        model = self.model
        is_fast = model.towers is TOWERS["fast"]
        if self.cfg.MODEL.get("COMPILE", False):
            if self.device.type == "cuda" and is_fast and find_spec("triton"):
                model.towers = compiled_towers()
            else:
                print("MODEL.COMPILE is ignored: it needs a GPU, Triton and the fast towers")
        clip = model.clip
        recompute = self.cfg.MODEL.BACKBONE.get("CHECKPOINT_TEXT", False)
        if recompute and not (is_fast and reads_as_clip(clip) and is_standard(clip.transformer)):
            print("MODEL.BACKBONE.CHECKPOINT_TEXT is ignored: it needs the fast towers")
        clip.transformer.grad_checkpointing = recompute

    def load_start(self, path: str) -> None:
        """MODEL.INIT_WEIGHTS: start from the learned tensors of a file, with what is behind
        them.
        """
        method = self.method
        start = read_checkpoint(path)
        if Path(path).name == PROMPTS:
            start["metadata"] = described(path)
        if is_checkpoint(start):
            method.checkpoints.check_start(start, path)
        load_pretrained_weights(method.saved_module(), path)
        choices, phases = inherited(start) if is_checkpoint(start) else (None, None)
        method.inherited_choices = joined(method.inherited_choices, choices)
        method.inherited_phases = joined(method.inherited_phases, phases)

    # The loop

    def train(self) -> None:
        if self.method.learns:
            super().train()
        else:
            print(f"{type(self.method).__name__} has nothing to train: it is only tested")
            self.test()

    def stop_workers(self) -> None:
        self.train_loader_x = self.dm.train_loader_x  # Dassl's own loader, which has them
        super().stop_workers()

    def before_train(self) -> None:
        self.method.check_training()
        self.train_loader_x = self.method.batches(self.dm.train_loader_x)
        warmup = getattr(self.sched, "warmup_epoch", 0)  # some methods have a schedule without
        if 0 < self.max_epoch <= warmup:
            fault = f"OPTIM.WARMUP_EPOCH is {warmup} and MAX_EPOCH is {self.max_epoch}"
            print(f"{fault}: the learning rate stays below OPTIM.LR in all epochs")
        super().before_train()
        if self.start_epoch > 0:
            check_resumed(type(self.method).__name__, self.method.run_state())

    def before_epoch(self) -> None:
        self.method.training.epoch = self.epoch
        self.train_loader_x = self.method.batches(self.dm.train_loader_x)

    def run_epoch(self) -> None:
        if self.method.trains_in_one_step:
            self.method.run_epoch(self.train_loader_x)
        else:
            super().run_epoch()

    def forward_backward(self, batch: Mapping[str, Any]) -> dict[str, float | Tensor]:
        logged = self.method.training_step(batch)
        if self.batch_idx + 1 == self.num_batches:
            self.method.training.end_batches(self.method.schedule_steps)
        return logged

    def after_epoch(self) -> None:
        self.method.after_epoch()
        super().after_epoch()

    def _save_epoch(self) -> None:
        number = self.epoch + 1
        every = self.cfg.TRAIN.CHECKPOINT_FREQ
        is_wanted = number == self.max_epoch or (every > 0 and number % every == 0)
        if self.method.saves_each_epoch or is_wanted:
            super()._save_epoch()
        elif self._best:
            best = {"val_result": self._best["val_result"], "model_name": "model-best.pth.tar"}
            self.save_model(self.epoch, self.output_dir, **best)

    def set_model_mode(self, mode: str = "train", names: Any = None) -> None:
        """Put the whole model in a mode, also where a part of it is saved, or nothing.

        Raises KeyError for another mode than Dassl's.
        """
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")

    # A test

    def test(self, split: str | None = None) -> Any:
        """As Dassl's; an observer with `reads` finds these in `model.last_output`."""
        reads = [observer.reads for observer in self.observers if hasattr(observer, "reads")]
        with self.model.reading(*chain(*reads)) if reads else nullcontext():
            return super().test(split)

    def test_outputs(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        return self.method.predict_loader(loader, self.output_dir)

    def model_inference(self, images: Any) -> Tensor:
        return self.method.model_inference(images)

    # Checkpoints

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        self.method.load_model(directory, epoch)

    def checkpoint_metadata(self) -> dict[str, Any]:
        return self.method.checkpoints.training_metadata()

    def check_metadata(self, written: Mapping[str, Any]) -> None:
        self.method.checkpoints.check_resumed(written)

    def run_state(self) -> dict[str, Any]:
        return super().run_state() | self.method.run_state()

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        super().load_run_state(state)
        self.method.load_run_state(state)


def trainer_of(method: type[Method], cfg: CfgNode) -> MethodTrainer:
    """What Dassl's `build_trainer` gets for a registered method."""
    return MethodTrainer(cfg, method)


Method.build_trainer = classmethod(trainer_of)  # type: ignore[assignment]


def classes_of(data: Any, name: str) -> Classes:
    """The classes of a run, in the order of their labels, from Dassl's data manager. Raises
    UsageError if a label has no name, so that other labels would get wrong names."""
    names = data.dataset.classnames
    if len(names) != data.num_classes:
        fault = f"{name} has {len(names)} class names for labels 0 to {data.num_classes - 1}"
        raise UsageError(fault, "number its classes without gaps")
    names = list(map(plain, names))
    check_known_names(names, name)
    template = getattr(data.dataset, "template", TEMPLATE)
    return Classes(names, template, getattr(data.dataset, "sentences", {}))
