"""Images -> class probabilities by learned prompts, without a dataset: the forward pass of a run's test."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from dassl.data.transforms import build_transform
from dassl.utils import read_image
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from torch import Tensor

from clip import CLIP, is_published, load_backbone, weights_sha256
from common.errors import UsageError, choose
from common.names import check_names

from .artefact import Description, read_artefact, write_artefact
from .base import TEMPLATE, PromptTrainer

BATCH = 100  # images at a time, as in the published tests
OPENAI_INPUT = {
    "INTERPOLATION": "bicubic",
    "PIXEL_MEAN": list(OPENAI_DATASET_MEAN),
    "PIXEL_STD": list(OPENAI_DATASET_STD),
    "TRANSFORMS": ["normalize"],
}

LOCK = RLock()  # a server calls from several threads, and stdout is one for all

Pixels = str | PathLike | Image.Image  # an image file, or an image in memory


@dataclass(frozen=True)
class ClassNames:
    """Takes the place of Dassl's data manager, and of its dataset, where there are class names and no images."""

    classnames: list[str]
    template: str

    @property
    def dataset(self) -> "ClassNames":
        return self

    @property
    def num_classes(self) -> int:
        return len(self.classnames)

    @property
    def lab2cname(self) -> dict[int, str]:
        return dict(enumerate(self.classnames))


class PromptedClassifier:
    """A frozen CLIP under learned prompts, ready to classify images.

    It computes what a run's test computes: same forward pass, precision and transform. Text features are computed once
    for each list of class names (except where they depend on the image, as in CoCoOp).

    Args:
        description: the prompts' method, settings, transform and class names.
        checkpoint: what holds the learned tensors, as `PromptTrainer.load_prompts` takes it; None for a method that
            learns nothing.
        source: where they are from, for errors.
        backbone: name or file of the weights; by default the one that the prompts were learned on.
        device: `cpu` or `cuda`; by default CUDA if there is a GPU.
        clip: the backbone, if it is loaded already.

    Attributes:
        description, source: as given.
        transform: from a PIL image in RGB to a (3, H, W) tensor.
        class_names: names of the classes that the prompts were learned on.

    Raises:
        UsageError: the class names are missing, the prompts do not fit the settings, or the weights are others.
    """

    def __init__(
        self,
        description: Description,
        checkpoint: Mapping[str, Any] | None,
        source: str,
        backbone: str = "",
        device: str = "",
        clip: CLIP | None = None,
    ):
        if device:
            choose(device, ("cpu", *(["cuda"] if torch.cuda.is_available() else [])), "device")
        if not description.class_names:
            raise UsageError(f"{source} holds no class names", "give them by --classes or --classes-file", source)
        self.description, self.checkpoint, self.source = description, checkpoint, source
        self.cfg = description.cfg(description.backbone_name(backbone), device != "cpu")
        self._others: tuple[list[str], PromptTrainer] | None = None  # the latest other class names
        self._own = self._trainer(self.class_names, clip)
        if checkpoint is not None:  # a published one holds the whole backbone, too
            self.checkpoint = {**checkpoint, "state_dict": self._own.saved_module().state_dict(), "optimizer": None}
        self.transform = quietly(build_transform, self.cfg, is_train=False)

    @classmethod
    def from_folder(cls, folder: str | PathLike, backbone: str = "", device: str = "") -> "PromptedClassifier":
        """The classifier of a folder that tools/export.py wrote.

        Args:
            folder: the folder, with config.json and prompts.safetensors.
            backbone, device: as for the class. A backbone must have the SHA-256 that config.json states.

        Raises:
            UsageError: a file is missing, damaged or changed, or the backbone has other weights.
        """
        description, checkpoint = cls.read_folder(Path(folder))
        return cls(description, checkpoint, str(folder), backbone, device)

    @staticmethod
    def read_folder(folder: Path) -> tuple[Description, dict[str, Any]]:
        """The description and the checkpoint of an artefact, as the class takes them."""
        description, tensors = read_artefact(folder)
        metadata = {key: getattr(description, key) for key in ("method", "settings", "class_names")}
        return description, {"state_dict": tensors, "epoch": 0, "metadata": metadata}

    @classmethod
    def zero_shot(
        cls, backbone: str, class_names: Sequence[str], template: str = TEMPLATE, device: str = ""
    ) -> "PromptedClassifier":
        """Zero-shot CLIP: `template` has {} for the class name. Other arguments are as for `from_folder`."""
        clip = load_backbone(backbone)
        size = clip.visual.image_size
        image: dict[str, Any] = {"SIZE": list(size) if isinstance(size, tuple | list) else [size, size]}
        for key, attribute in {"PIXEL_MEAN": "image_mean", "PIXEL_STD": "image_std"}.items():
            if own := getattr(clip.visual, attribute, None):
                image[key] = list(own)
        description = Description(
            "ZeroshotCLIP",
            {"PREC": "fp32"},
            OPENAI_INPUT | image,
            backbone,
            class_names=check_names(class_names),
            template=template,
        )
        return cls(description, None, backbone, backbone, device, clip)

    @property
    def class_names(self) -> list[str]:
        return self.description.class_names

    @property
    def method(self) -> str:
        return self.description.method

    @property
    def device(self) -> torch.device:
        return self._own.device

    def save(self, folder: Path) -> Description:
        """Write the artefact to an existing folder; returns what its config.json says."""
        name = self.cfg.MODEL.BACKBONE.NAME
        public = name if is_published(name) else re.sub(r"[^:]*/", "", name)  # without the folder of a file
        description = replace(self.description, backbone=public, backbone_sha256=weights_sha256(name))
        return write_artefact(folder, description, self._own.saved_module().state_dict())

    def read(self, image: Pixels) -> Image.Image:
        """The image in RGB, decoded as for a test.

        Raises:
            UsageError: the file is missing or not an image, or it has too many pixels.
        """
        if isinstance(image, str | PathLike) and not Path(image).exists():
            raise UsageError(f"there is no file {str(image)!r}", "check its path")
        return read_image(image, self.cfg.INPUT.MAX_PIXELS, self.cfg.INPUT.EXIF_ORIENTATION)

    def probabilities(
        self, images: Pixels | Tensor | Sequence[Pixels], class_names: Sequence[str] | None = None
    ) -> Tensor:
        """The probability of each class: (images, classes), fp32, on the CPU.

        Args:
            images: files or PIL images, or one of them; or a tensor (images, 3, H, W) that `transform` made.
            class_names: other names to choose from; by default those that the prompts were learned on.

        Raises:
            UsageError: an image cannot be read, or a class name is empty, given twice or too long.
        """
        return self.logits(images, class_names).softmax(dim=-1)

    def logits(self, images: Pixels | Tensor | Sequence[Pixels], class_names: Sequence[str] | None = None) -> Tensor:
        """The scaled cosine similarities before softmax; arguments and errors are those of `probabilities`."""
        trainer = self._trainer_of(class_names)
        none = torch.empty(0, len(trainer.class_names))
        batches = self._batches(images)
        return torch.cat([none, *(trainer.model_inference(batch.to(self.device)).cpu() for batch in batches)])

    def model_for(self, class_names: Sequence[str] | None = None) -> Any:
        """The `PromptedCLIP` that computes the logits of these class names."""
        return self._trainer_of(class_names).model

    def _batches(self, images: Pixels | Tensor | Sequence[Pixels]) -> Iterator[Tensor]:
        if isinstance(images, Tensor):
            yield from (images if images.dim() == 4 else images[None]).split(BATCH)
            return
        several = [images] if isinstance(images, str | PathLike | Image.Image) else list(images)
        for start in range(0, len(several), BATCH):
            yield torch.stack([self.transform(self.read(image)) for image in several[start : start + BATCH]])

    def _trainer_of(self, class_names: Sequence[str] | None) -> PromptTrainer:
        """The trainer for these names: the own one, or one on the same backbone with the same prompts."""
        names = spoken(self.class_names if class_names is None else check_names(class_names))
        if names == spoken(self.class_names):
            return self._own
        with LOCK:
            if self._others is None or self._others[0] != names:
                clip = self._own.model.clip.cpu()  # where a method builds its prompts
                try:
                    self._others = names, self._trainer(names, clip)
                finally:
                    clip.to(self.device)
            return self._others[1]

    def _trainer(self, class_names: list[str], clip: CLIP | None) -> PromptTrainer:
        from . import methods  # the package imports this module

        template = self.description.template or self.description.dataset_template or TEMPLATE
        method = methods()[self.method]
        trainer = quietly(method, self.cfg, ClassNames(class_names, template), clip)
        nothing = torch.zeros(1, trainer.model.clip.visual.output_dim, device=trainer.device)
        other = class_names is not self.class_names and method.transfers
        if other and trainer.model.prompt_learner.text(nothing).by_class:
            what = f"{self.source} has a context for each class that it was learned on"
            raise UsageError(what, "leave out the class names", self.source)
        if self.checkpoint is not None:
            quietly(trainer.load_prompts, self.checkpoint, self.source)
        trainer.set_model_mode("eval")
        return trainer


def spoken(names: Sequence[str]) -> list[str]:
    """Class names in the form that a text has."""
    return [name.replace("_", " ") for name in names]


def quietly(function, *arguments, **named):
    """The result of the function; its output is for the log of a run."""
    with LOCK, redirect_stdout(StringIO()):
        return function(*arguments, **named)
