"""Images -> class probabilities by learned prompts: the forward pass of a run's test."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from dassl.utils import read_image
from PIL import Image
from torch import Tensor

import trainers
from clip import CLIP, is_published, load_backbone, tokenizer_of, weights_sha256
from common.errors import UsageError, check_name
from common.names import check_names, with_spaces
from trainers.base import TEMPLATE
from trainers.base.method import Classes, Method
from trainers.base.prompted import PromptedCLIP
from trainers.base.trainer import assemble_model

from .artefact import INPUT, Description, write_artefact
from .calibrated import Calibration, write_calibration
from .description import check_description, predicting_configuration, zero_shot_description
from .images import BATCH, Images, Pixels, image_of, in_batches
from .options import DEFAULTS, LoadOptions
from .predictions import Predictions

ON_GPU = Lock()  # of threads that would compute there at the same time
OTHER_LISTS = 4  # lists of other class names whose text features are kept


class PromptedClassifier:
    """A frozen CLIP under learned prompts, ready to classify images.

    It computes what a run's test computes: same forward pass, precision and transform. TDA's caches
    alone, which hold earlier images in a test, are empty for each image. Text features are computed
    once for each list of class names (except where they depend on the image, as in CoCoOp). Several
    threads may call it.

    Args:
        description: the prompts' method, settings, transform and class names.
        checkpoint: the tensors for `Checkpoints.load_prompts`; None if nothing is learned.
        source: where they are from, for errors.
        options: of them `backbone`, `device` and `max_pixels`.
        clip: the backbone, if it is loaded already.
        calibration: what `tools/calibrate.py` has fitted for the model.

    Attributes:
        cfg: the configuration that a prediction depends on; its values of training are defaults.
        device: where the model is.
        transform: from a PIL image in RGB to a (3, H, W) tensor, or (views, 3, H, W) for a
            test-time method.

    Raises:
        UsageError: the class names are missing, the prompts do not fit the settings, or the weights
            are others.
    """

    def __init__(
        self,
        description: Description,
        checkpoint: Mapping[str, Any] | None,
        source: str,
        options: LoadOptions = DEFAULTS,
        clip: CLIP | None = None,
        calibration: Calibration | None = None,
    ):
        cuda = torch.cuda.is_available()
        if options.device:
            check_name(options.device, ["cpu", "cuda"] if cuda else ["cpu"], "device")
        check_description(description, source)
        if trainers.predicting()[description.method].is_transductive:
            fault = f"{description.method} answers for all images of a test together"
            raise UsageError(fault, "give another model, or see tools/predict.py --transductive")
        self.description = description
        self.checkpoint = checkpoint
        self.source = source
        self.device = torch.device(options.device or ("cuda" if cuda else "cpu"))
        self.cfg = predicting_configuration(description, options)
        self.transform = trainers.predicting()[self.method].test_transform(self.cfg)
        self.clip = clip
        self.calibration = calibration
        self._own = self._build(*with_spaces(self.class_names))
        self.clip = self._own.model.frozen  # all models have this one, which never moves
        self._other = lru_cache(OTHER_LISTS)(self._build)
        # A published one holds the whole backbone, too, and names no classes
        if checkpoint is not None:
            learned = self.class_names if self._own.model.classes_learned else []
            metadata = {"class_names": learned, **(checkpoint.get("metadata") or {})}
            state = self._own.saved_module().state_dict()
            self.checkpoint = {
                **checkpoint,
                "state_dict": state,
                "optimizer": None,
                "metadata": metadata,
            }

    @classmethod
    def zero_shot(
        cls,
        backbone: str,
        class_names: Sequence[str],
        template: str = TEMPLATE,
        device: str = "",
        sentences: dict[str, list[str]] | None = None,
        clip: CLIP | None = None,
    ) -> "PromptedClassifier":
        """Zero-shot CLIP (`zero_shot_description`) on a backbone, which may be loaded already."""
        clip = clip or load_backbone(backbone)
        description = zero_shot_description(
            clip, backbone, check_names(class_names), template, sentences or {}
        )
        options = LoadOptions(backbone=backbone, device=device)
        return cls(description, None, backbone, options, clip)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes that the prompts were learned on, in the order of the logits."""
        return self.description.class_names

    @property
    def input(self) -> dict[str, Any]:
        """The keys of INPUT that the transform of a test reads, all of them."""
        return {key: self.cfg.INPUT[key] for key in INPUT}

    @property
    def method(self) -> str:
        return self.description.method

    @property
    def backbone(self) -> str:
        """The name or the file of the weights that were loaded."""
        return self.cfg.MODEL.BACKBONE.NAME

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def width(self) -> int:
        """Of a feature of an image."""
        return self._own.model.clip.visual.output_dim

    @property
    def transfers(self) -> bool:
        """Whether it can tell other classes than those that it was learned on."""
        nothing = torch.zeros(1, self.width, device=self.device)
        return (
            type(self._own).transfers and not self._own.model.prompt_learner.text(nothing).by_class
        )

    @property
    def views(self) -> int:
        """How many tensors (3, H, W) an image becomes."""
        return getattr(self.transform, "count", 1)

    def require_one_view(self, use: str) -> None:
        """Raise UsageError for a test-time method, whose answer for an image is not that of its
        model alone.
        """
        if hasattr(self.transform, "count"):
            raise UsageError(
                f"{self.method} answers from views of an image", f"{use} needs another method"
            )

    def save(self, folder: Path) -> Description:
        """Write the exported form to an existing folder; returns what its config.json says."""
        name = self.backbone
        # Without the folder of a file
        public = name if is_published(name) else re.sub(r"[^:]*/", "", name)
        facts = dict(self.description.training)
        if not self._own.model.classes_learned:
            facts["classes_learned"] = False
        description = replace(
            self.description,
            backbone=public,
            backbone_sha256=weights_sha256(name),
            tokeniser=tokenizer_of(self.clip).name,
            input=self.input,
            training=facts,
        )
        written = write_artefact(folder, description, self._own.saved_module().state_dict())
        if self.calibration:
            write_calibration(folder, self.calibration)
        return written

    def pixels(
        self, images: Sequence[Pixels], read: Callable[..., Image.Image] = read_image
    ) -> Tensor:
        """The images (images, 3, H, W), or (images, views, 3, H, W), read and transformed as for a
        test.

        `read` takes the arguments of `read_image`, and returns an image in RGB.

        Raises:
            UsageError: a file is missing or not an image, or it has too many pixels.
        """
        found = [image_of(image) for image in images]
        for image in found:
            if isinstance(image, str | PathLike) and not Path(image).exists():
                raise UsageError(f"there is no file {str(image)!r}", "check its path")
        options = self.cfg.INPUT.MAX_PIXELS, self.cfg.INPUT.EXIF_ORIENTATION
        pixels = [self.transform(read(image, *options)) for image in found]
        return torch.stack(pixels) if pixels else torch.empty(0, 3, *self.cfg.INPUT.SIZE)

    def colours(self, pixels: Tensor) -> Tensor:
        """Images (images, 3, H, W) that `pixels` returned, as colours from 0 to 1."""
        image = self.cfg.INPUT
        if "normalize" not in image.TRANSFORMS:
            return pixels.clamp(0, 1)
        mean = torch.tensor(list(image.PIXEL_MEAN))[:, None, None]
        std = torch.tensor(list(image.PIXEL_STD))[:, None, None]
        return (pixels * std + mean).clamp(0, 1)

    def predict(self, images: Images, class_names: Sequence[str] | None = None) -> Predictions:
        """Predictions for images; arguments and errors are those of `logits`."""
        return self.predictions(self.logits(images, class_names), class_names)

    def predictions(self, logits: Tensor, class_names: Sequence[str] | None = None) -> Predictions:
        """What logits (images, classes) of these class names say."""
        names = self.class_names if class_names is None else check_names(class_names)
        return Predictions(names, logits, self.calibration, self.source)

    def probabilities(self, images: Images, class_names: Sequence[str] | None = None) -> Tensor:
        """`predict(...).probabilities`: (images, classes), fp32, on the CPU."""
        return self.predict(images, class_names).probabilities

    def check_asked(
        self, unknown: bool, coverage: float | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        """Raise UsageError if `Predictions.unknown` or `.sets` are asked for and cannot answer for
        these class names.
        """
        if unknown or coverage is not None:
            names = class_names or self.class_names
            nothing = Predictions(names, torch.empty(0), self.calibration, source=self.source)
            nothing.calibration_for(unknown, coverage)

    def features(self, images: Images) -> Tensor:
        """The features of images by the image tower: (images, width), fp32, on the CPU; of unit
        length unless the method says otherwise.

        Raises:
            UsageError: an image cannot be read, or a test-time method answers from several views.
        """
        self.require_one_view("a feature")
        return self._each(images, self._own.model.image_features, self.width)

    def logits(self, images: Images, class_names: Sequence[str] | None = None) -> Tensor:
        """The scaled cosine similarities before softmax: (images, classes), fp32, on the CPU.

        Args:
            images: files, contents of files, PIL images or arrays (H, W, 3) of bytes in RGB, or one
                of them; or a tensor (images, [views,] 3, H, W).
            class_names: other names to choose from; by default those of the model.

        Raises:
            UsageError: an image cannot be read, a class name is empty, given twice or too long, or
                a logit is not finite.
        """
        method = self._method_for(class_names)
        return self._logits(method, images, method.model_inference)

    def _logits(
        self, method: Method, images: Images, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`_each` for logits of the classes of a method; UsageError if one is not finite."""
        logits = self._each(images, function, len(method.class_names))
        if not logits.isfinite().all():
            remedy = "use the checkpoint of another epoch, or train again"
            raise UsageError(f"{self.source} gives logits that are not finite", remedy, self.source)
        return logits

    def _each(self, images: Images, function: Callable[[Tensor], Tensor], width: int) -> Tensor:
        """(images, ..., width): what a function returns of one batch of pixels after another."""
        turn = ON_GPU if self.on_gpu else nullcontext()

        def compute(pixels: Tensor) -> Tensor:
            with turn, torch.no_grad():  # also in the threads
                return function(pixels.to(self.device)).cpu()

        most = max(1, BATCH // self.views)
        parts = in_batches(images, compute, self.pixels, most, self.on_gpu)
        return torch.cat([*parts] or [torch.empty(0, width)])

    def check_logits(self, class_names: Sequence[str] | None = None) -> None:
        """Check that these names have finite logits; errors are those of `logits`."""
        self.logits(self.black(), class_names)

    def black(self) -> Tensor:
        """(1, 3, H, W): an image without light."""
        return torch.zeros(1, 3, *self.cfg.INPUT.SIZE)

    def model_for(self, class_names: Sequence[str] | None = None) -> PromptedCLIP:
        """The model that computes the logits of these class names."""
        return self._method_for(class_names).model

    def _method_for(self, class_names: Sequence[str] | None) -> Method:
        own = with_spaces(self.class_names)
        names = own if class_names is None else with_spaces(check_names(class_names))
        return self._own if names == own else self._other(*names)

    @torch.inference_mode(False)  # whose tensors do not count their changes
    def _build(self, *class_names: str) -> Method:
        """The method with a model for these names: the learned prompts on the one backbone."""
        kind = trainers.predicting()[self.method]
        template = self.description.template or self.description.dataset_template
        classes = Classes(list(class_names), template or TEMPLATE, self.description.sentences)
        method = kind(self.cfg, classes, self.device)
        if class_names != with_spaces(self.class_names) and not self.transfers:
            fault = f"{self.source} was learned for its own classes and cannot take other names"
            raise UsageError(fault, "leave out the class names", self.source)
        assemble_model(method, clip=self.clip)
        if self.checkpoint is not None:
            method.checkpoints.load_prompts(self.checkpoint, self.source)
        method.model.eval()
        return method
