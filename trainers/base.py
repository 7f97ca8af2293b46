"""What every prompt trainer shares: the frozen CLIP, precision, the training step, learned-prompts-only checkpoints."""

import os
import re
from contextlib import nullcontext
from fnmatch import fnmatchcase
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_checkpoint, load_pretrained_weights
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import TOWERS, Schedule, TextPrompts, compiled_towers, is_vit, load_backbone

PRECISIONS = ("fp16", "fp32", "amp")


class PromptError(ValueError):
    """A setting or a checkpoint that a method cannot work with (one line)."""

    one_line = True


def extend_cfg(cfg: CfgNode) -> None:
    """Add the settings of every trainer of this package to a Dassl configuration, as TRAINER.<NAME IN CAPITALS>."""
    for method in PromptTrainer.methods:
        cfg.TRAINER[method.section()] = CfgNode(dict(method.defaults))


class PromptLearner(nn.Module):
    """The learned vectors of a method and where they go.

    What is learned are its parameters and those of `towers`: modules that published checkpoints keep beside the prompt
    learner, by their names there (`image_encoder`, `text_encoder`).
    """

    towers: dict[str, nn.Module] = {}

    def text(self, image_features: Tensor) -> TextPrompts:
        """What the text tower reads. `image_features` (batch, joint), normalised, matter only to CoCoOp's kind."""
        raise NotImplementedError

    def vision(self) -> Schedule:
        """The prompts of the image tower."""
        return ()


class PromptedCLIP(nn.Module):
    """Images -> logits through a frozen CLIP under learned prompts.

    The CLIP is not a submodule, so that `parameters()` and `state_dict()` are the learned prompts and nothing else.
    Their names are the published checkpoints' (`prompt_learner.ctx`, ...). `towers` names the form of the towers.
    """

    def __init__(self, clip: nn.Module, prompt_learner: PromptLearner, towers: str = "fast"):
        super().__init__()
        self.prompt_learner = prompt_learner
        for name, tower in prompt_learner.towers.items():
            self.add_module(name, tower)
        self._frozen = (clip,)
        self.towers = TOWERS[towers]

    @property
    def clip(self) -> nn.Module:
        return self._frozen[0]

    def image_features(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) -> (batch, joint), normalised, fp32."""
        return normalize(self.towers.encode_image(self.clip, images, self.prompt_learner.vision()))

    def text_features(self, image_features: Tensor) -> Tensor:
        """(classes, joint), or (batch, classes, joint) where the text depends on the image; normalised, fp32."""
        return normalize(self.towers.encode_text(self.clip, self.prompt_learner.text(image_features)))

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(batch, classes): scaled cosine similarities, always in fp32."""
        with torch.autocast(image_features.device.type, enabled=False):
            similarity = (text_features @ image_features.unsqueeze(-1)).squeeze(-1)
            return self.clip.logit_scale.exp().float() * similarity

    def forward(self, images: Tensor) -> Tensor:
        image_features = self.image_features(images)
        return self.logits(image_features, self.text_features(image_features))


def normalize(features: Tensor) -> Tensor:
    """To fp32 and unit length."""
    return F.normalize(features.float(), dim=-1)


class PromptTrainer(TrainerX):
    """A prompt-learning method on a frozen CLIP.

    A method sets `defaults` (its settings under TRAINER.<NAME>), `saved_as` (the folder of its checkpoints) and
    `build_prompts`; one with a loss of its own overrides `loss`.
    """

    defaults: dict = {"PREC": "fp16"}
    per_layer: tuple[str, ...] = ()  # settings that may be one number or a list of numbers
    saved_as = "prompt_learner"
    keys: tuple[str, ...] = ()  # names (with *) of what its checkpoints have learned, to tell methods apart
    methods: list[type] = []

    def __init_subclass__(cls):
        PromptTrainer.methods.append(cls)

    @classmethod
    def section(cls) -> str:
        """The method's key under TRAINER."""
        return cls.__name__.upper()

    @property
    def settings(self) -> CfgNode:
        """The method's own settings, the defaults where the configuration is silent."""
        return CfgNode({**self.defaults, **self.cfg.TRAINER.get(self.section(), {})})

    def build_prompts(self, clip: nn.Module, classnames: list[str]) -> PromptLearner:
        """The prompts of this method for a backbone (on the CPU) and class names (no underscores)."""
        raise NotImplementedError

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss to minimise, the logits (batch, classes), and parts of the loss to be logged."""
        logits = self.model(images)
        return F.cross_entropy(logits, labels), logits, {}

    @property
    def class_names(self) -> list[str]:
        """The names of the run's classes, in the order of their labels, without underscores.

        Raises:
            PromptError: a label has no name, so that the others would be taken for their neighbours.
        """
        names, n_classes = self.dm.dataset.classnames, self.dm.num_classes
        if len(names) != n_classes:
            raise PromptError(
                f"{self.cfg.DATASET.NAME} has {len(names)} class names for labels 0 to {n_classes - 1}: "
                "number its classes without gaps"
            )
        return [name.replace("_", " ") for name in names]

    def check_cfg(self, cfg: CfgNode) -> None:
        self.cfg = cfg  # Dassl sets it only later
        if self.settings.PREC not in PRECISIONS:
            raise PromptError(f"TRAINER.{self.section()}.PREC is {self.settings.PREC!r}, not {', '.join(PRECISIONS)}")

    def build_model(self) -> None:
        cfg = self.cfg
        prec, cpu = self.settings.PREC, self.device.type == "cpu"
        if prec == "fp16" and cpu:
            print("PREC fp16 needs a GPU: computing in fp32")
            prec = "fp32"
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip = load_backbone(cfg.MODEL.BACKBONE.NAME, "fp16" if prec == "fp16" else "fp32")
        check_input(cfg, clip)

        towers = cfg.MODEL.BACKBONE.get("TOWERS", "fast")
        if towers not in TOWERS:
            raise PromptError(f"MODEL.BACKBONE.TOWERS is {towers!r}: it can be {' or '.join(TOWERS)}")
        self.model = PromptedCLIP(clip, self.build_prompts(clip, self.class_names), towers).to(self.device)
        if cfg.MODEL.get("COMPILE", False):
            self.compile_towers()
        clip.to(self.device).transformer.grad_checkpointing = cfg.MODEL.BACKBONE.get("CHECKPOINT_TEXT", False)
        self._text_features = None
        self.amp = prec == "amp"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp and not cpu)
        print(f"Learned parameters: {count_num_param(self.model):,}")
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.saved_module(), cfg.MODEL.INIT_WEIGHTS)
        if any(True for _ in self.model.parameters()):
            self.optim = build_optimizer(self.model, cfg.OPTIM)
            self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
            self.register_model(self.saved_as, self.saved_module(), self.optim, self.sched)

    def compile_towers(self) -> None:
        """MODEL.COMPILE: put the towers' layers through torch.compile, or say why not."""
        if self.device.type != "cuda" or self.model.towers is not TOWERS["fast"] or find_spec("triton") is None:
            print("MODEL.COMPILE is ignored: it takes a GPU, Triton and the fast towers")
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
            loss, logits, parts = self.loss(images, labels)
        self.detect_anomaly(loss)
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        accuracy = compute_accuracy(logits, labels)[0]
        return {name: value.item() for name, value in {"loss": loss, "acc": accuracy, **parts}.items()}

    def set_model_mode(self, mode: str = "train", names=None) -> None:
        self._text_features = None  # what was computed for one evaluation is not true after a training step
        super().set_model_mode(mode, names)

    @torch.no_grad()
    def model_inference(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) -> (batch, classes), in fp32 also under PREC amp.

        Text features are computed once per evaluation; with the plain towers for each batch, as published.
        """
        image_features = self.model.image_features(images)
        text_features = self._text_features
        if text_features is None:
            text_features = self.model.text_features(image_features)
            if self.model.towers is not TOWERS["plain"] and text_features.dim() == 2:  # the same for every image
                self._text_features = text_features
        return self.model.logits(image_features, text_features)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts from a checkpoint of this project or of the published code, at any class count.

        Args:
            directory: the output folder of a training run; nothing is loaded if empty (as everywhere in Dassl).
            epoch: which epoch's; None means the best on validation or, where there is none, the newest.

        Raises:
            PromptError: no checkpoint there, or it lacks prompts of these settings, or has more of them.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        path = self.find_checkpoint(directory, epoch)
        checkpoint = load_checkpoint(path)
        if not isinstance(checkpoint, dict) or not checkpoint.keys() >= {"state_dict", "epoch"}:
            raise PromptError(f"{path} is no checkpoint of a training run: check --model-dir")
        self.saved_module().load_state_dict(self.select_prompts(checkpoint["state_dict"], path))
        self._text_features, self.loaded_epoch = None, checkpoint["epoch"]
        print(f"Loading prompts from {path} (epoch {checkpoint['epoch']})")

    def find_checkpoint(self, directory: str, epoch: int | None) -> str:
        """Path of a run's checkpoint; where there is none of this method, another method's, to be named as such."""
        folders = dict.fromkeys([self.saved_as, *(other.saved_as for other in self.methods)])
        for folder in (os.path.join(directory, name) for name in folders):
            for name in checkpoint_names(folder, epoch):
                if os.path.isfile(os.path.join(folder, name)):
                    return os.path.join(folder, name)
        expected = os.path.join(directory, self.saved_as, checkpoint_names("", epoch)[0])
        raise PromptError(f"no {type(self).__name__} checkpoint {expected}: check --model-dir and --load-epoch")

    def select_prompts(self, state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
        """The learned tensors among everything a published checkpoint holds.

        Published checkpoints also hold the frozen CLIP and buffers that belong to the training classes; both are left
        out.

        Raises:
            PromptError: the prompts are another method's, or were learned with other settings or another backbone.
        """
        state = {key.removeprefix("module."): value for key, value in state.items()}
        own = self.saved_module().state_dict()
        method, remedy = type(self).__name__, "use the settings and the backbone it was trained with"
        prompts = [key for key in state if any(matches(key, other.keys) for other in self.methods)]
        fitting = [other for other in self.methods if all(matches(key, other.keys) for key in prompts)]
        least = min((len(other.keys) for other in fitting), default=0)
        likely = [other for other in fitting if len(other.keys) == least]
        # One method's prompts can be part of another's, as CoOp's ctx is of CoCoOp's.
        foreign = type(self) not in fitting or (type(self) not in likely and not own.keys() <= state.keys())
        if prompts and foreign:
            names = " or ".join(other.__name__ for other in likely) or "another method"
            raise PromptError(f"{path} is a checkpoint of {names}, not of {method}: test it with --trainer {names}")
        for key, tensor in own.items():
            if key not in state:
                raise PromptError(f"{path} has no {key}: {remedy}")
            if state[key].shape != tensor.shape:
                shapes = f"{tuple(state[key].shape)}, expected is {tuple(tensor.shape)}"
                raise PromptError(f"{key} in {path} has shape {shapes}: {remedy}")
        more = [key for key in prompts if key not in own]
        if more:
            raise PromptError(f"{path} has prompts beyond these settings, such as {more[0]}: {remedy}")
        return {key: state[key] for key in own}


def checkpoint_names(folder: str, epoch: int | None) -> list[str]:
    """Names that a checkpoint of this epoch may have in a folder; for None the best one's, then the newest first."""
    if epoch is not None:
        return [f"model.pth.tar-{epoch}"]
    names = ["model-best.pth.tar"]
    if os.path.isfile(os.path.join(folder, "checkpoint")):
        with open(os.path.join(folder, "checkpoint")) as file:
            names.append(file.readline().strip())
    if os.path.isdir(folder):  # checkpoints are passed on without the file that names them
        numbered = (re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in os.listdir(folder))
        names += [match[0] for match in sorted(filter(None, numbered), key=lambda match: -int(match[1]))]
    return names


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def require_vit(clip: nn.Module, method: str, backbone: str) -> None:
    """Refuse a backbone whose image tower takes no prompts, such as a ResNet."""
    if not is_vit(clip):
        raise PromptError(f"{method} needs a vision transformer such as ViT-B/16; {backbone} is none: choose another")


def check_input(cfg: CfgNode, clip: nn.Module) -> None:
    """Refuse images of a size that the backbone cannot read, and say when they are normalised in another way."""
    side = clip.visual.image_size
    expected = tuple(side) if isinstance(side, tuple | list) else (side, side)
    if tuple(cfg.INPUT.SIZE) != expected:
        raise PromptError(
            f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {cfg.MODEL.BACKBONE.NAME} reads {expected}: give that as "
            "INPUT.SIZE, or a YAML for this backbone"
        )
    for key, attribute in (("PIXEL_MEAN", "image_mean"), ("PIXEL_STD", "image_std")):
        own = getattr(clip.visual, attribute, None)
        if own and any(abs(a - b) > 1e-6 for a, b in zip(own, cfg.INPUT[key], strict=True)):
            print(f"INPUT.{key} is {cfg.INPUT[key]}, {cfg.MODEL.BACKBONE.NAME} was trained with {list(own)}")
