"""Images -> class probabilities by learned prompts, without a dataset: the forward pass of a run's
test.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from dassl.utils import read_image
from PIL import Image
from torch import Tensor

import datasets
import trainers
from clip import CLIP, is_published, load_backbone, tokenizer_of, weights_sha256
from common.errors import UsageError, check_name
from common.names import check_known_names, check_names, check_template, with_spaces
from trainers.base import TEMPLATE
from trainers.base.build import assemble_model
from trainers.base.method import Classes, Method
from trainers.base.prompted import PromptedCLIP

from .artefact import INPUT, NO_NAMES, Description, write_artefact
from .description import configuration, zero_shot_description

if TYPE_CHECKING:
    from .calibrated import Calibration
    from .calibration import Distances

BATCH = 100  # images at a time, as in the published tests
OTHER_LISTS = 4  # lists of other class names whose text features are kept

Pixels = str | PathLike | bytes | Image.Image  # an image file, its content, or an image in memory


class PromptedClassifier:
    """A frozen CLIP under learned prompts, ready to classify images.

    It computes what a run's test computes: same forward pass, precision and transform. TDA's caches
    alone, which hold earlier images in a test, are empty for each image. Text features are computed
    once for each list of class names (except where they depend on the image, as in CoCoOp). Several
    threads may call it.

    Args:
        description: the prompts' method, settings, transform and class names.
        checkpoint: the learned tensors, as `Checkpoints.load` takes them; None if nothing is
            learned.
        source: where they are from, for errors.
        backbone: name or file of the weights; by default the one that the prompts were learned on.
        device: `cpu` or `cuda`; by default CUDA if there is a GPU.
        clip: the backbone, if it is loaded already.
        calibration: what `tools/calibrate.py` has fitted for the model.
        max_pixels: larger images are refused; by default as in the run, or those over 89,478,485.

    Attributes:
        cfg: the configuration that a prediction depends on; its values of training are defaults.
        device: where the model is.
        transform: from a PIL image in RGB to a (3, H, W) tensor, or (views, 3, H, W) for a
            test-time method.

    Raises:
        UsageError: the class names are missing, the prompts do not fit the settings, or the weights
            are others.
    """

    def __init__(  # noqa: PLR0913
        self,
        description: Description,
        checkpoint: Mapping[str, Any] | None,
        source: str,
        backbone: str = "",
        device: str = "",
        clip: CLIP | None = None,
        calibration: "Calibration | None" = None,
        max_pixels: int | None = None,
    ):
        cuda = torch.cuda.is_available()
        if device:
            check_name(device, ["cpu", "cuda"] if cuda else ["cpu"], "device")
        if not description.class_names:
            raise UsageError(f"{source} holds no class names", NO_NAMES, source)
        check_known_names(description.class_names, source)
        for template in filter(None, (description.template, description.dataset_template)):
            check_template(template, source)
        if description.sentences:
            datasets.sentences.check(description.sentences, source)
        self.description = description
        self.checkpoint = checkpoint
        self.source = source
        self.device = torch.device(device or ("cuda" if cuda else "cpu"))

        cfg = configuration(self.method)
        section = trainers.predicting()[self.method].section()
        cfg.merge_from_other_cfg(
            {"TRAINER": {section: description.settings}, "INPUT": description.input}
        )
        cfg.DATASET.NAME = description.dataset_name
        cfg.DATASET.TITLE = description.dataset
        cfg.DATASET.TEMPLATE = description.template
        cfg.MODEL.BACKBONE.NAME = description.backbone_name(backbone)
        seed = description.training.get("seed")  # of the views of a test-time method
        cfg.SEED = seed if type(seed) is int and 0 <= seed < 2**32 else 0
        shots = description.training.get("shots")  # in TRAINER.<NAME>.FEATURES_OF
        cfg.DATASET.NUM_SHOTS = shots if type(shots) is int else -1
        if max_pixels is not None:
            cfg.merge_from_list(["INPUT.MAX_PIXELS", max_pixels])
        cfg.freeze()  # which checks Dassl's keys
        self.cfg = cfg
        self.transform = trainers.predicting()[self.method].test_transform(self.cfg)
        self.clip = clip
        self.calibration = calibration
        self._own = self._build(*with_spaces(self.class_names))
        self.clip = self._own.model.frozen  # all models have this one, which never moves
        self._other = lru_cache(OTHER_LISTS)(self._build)
        self._distances = lru_cache(OTHER_LISTS)(self._fit_distances)
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
    def from_pretrained(  # noqa: PLR0913
        cls,
        name: str | PathLike,
        backbone: str = "",
        device: str = "",
        revision: str | None = None,
        *,
        class_names: Sequence[str] = (),
        epoch: int | None = None,
        config_file: str | PathLike = "",
        method: str = "",
        max_pixels: int | None = None,
    ) -> "PromptedClassifier":
        """The classifier of an exported folder, of a run, of a checkpoint, or of a folder on the
        Hugging Face Hub.

        Args:
            name: a folder or a file; or `user/name`, a repository that `tools/export.py
                --push-to-hub` wrote.
            backbone, device: as for the class. A backbone must have the SHA-256 that config.json
                states.
            revision: of the repository: a branch, a tag or a commit; by default the newest commit.
            class_names: for zero-shot CLIP and published checkpoints, which have none.
            epoch: of a run; by default the tested one.
            config_file, method: of a published checkpoint; the name is by default that of the
                folder of the YAML file.
            max_pixels: as for the class.

        Raises:
            UsageError: a file is missing, damaged, too large or changed; the backbone has other
                weights, or the model other class names; there is no such repository, or no
                connection to the Hub and no copy of it.
        """
        from .models import open_models  # which needs this class

        path = Path(name)
        if not path.exists():
            from .hub import download  # here, as most users need no Hub

            path = download(str(name), revision)
        options = {
            "backbone": backbone,
            "device": device,
            "load_epoch": epoch,
            "config_file": str(config_file),
        }
        options |= {"trainer": method, "template": "", "sentences": "", "max_pixels": max_pixels}
        ((_, classifier),) = open_models([path], Namespace(**options), class_names)
        if class_names and with_spaces(classifier.class_names) != with_spaces(
            check_names(class_names)
        ):
            raise UsageError(
                f"{name} has class names of its own", "give other names to `probabilities`", name
            )
        return classifier

    @classmethod
    def zero_shot(
        cls,
        backbone: str,
        class_names: Sequence[str],
        template: str = TEMPLATE,
        device: str = "",
        sentences: dict[str, list[str]] | None = None,
    ) -> "PromptedClassifier":
        """Zero-shot CLIP (`zero_shot_description`); other arguments are as for the class."""
        clip = load_backbone(backbone)
        description = zero_shot_description(
            clip, backbone, check_names(class_names), template, sentences or {}
        )
        return cls(description, None, backbone, backbone, device, clip)

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
    def transfers(self) -> bool:
        """Whether it can tell other classes than those that it was learned on."""
        nothing = torch.zeros(1, self._own.model.clip.visual.output_dim, device=self.device)
        return (
            type(self._own).transfers and not self._own.model.prompt_learner.text(nothing).by_class
        )

    @property
    def views(self) -> int:
        """How many tensors (3, H, W) an image becomes."""
        return getattr(self.transform, "count", 1)

    def require_one_view(self, what: str) -> None:
        """Raise UsageError for a test-time method, whose answer for an image is not that of its
        model alone.
        """
        if hasattr(self.transform, "count"):
            raise UsageError(
                f"{self.method} answers from views of an image", f"{what} needs another method"
            )

    def save(self, folder: Path) -> Description:
        """Write the exported form to an existing folder; returns what its config.json says."""
        name = self.cfg.MODEL.BACKBONE.NAME
        # Without the folder of a file
        public = name if is_published(name) else re.sub(r"[^:]*/", "", name)
        facts = self.description.training | (
            {} if self._own.model.classes_learned else {"classes_learned": False}
        )
        facts_of_weights: dict[str, Any] = {
            "backbone": public,
            "backbone_sha256": weights_sha256(name),
            "tokeniser": tokenizer_of(self.clip).name,
            "input": self.input,
        }
        description = replace(self.description, **facts_of_weights, training=facts)
        written = write_artefact(folder, description, self._own.saved_module().state_dict())
        if self.calibration:
            from .calibrated import write_calibration

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
        for image in images:
            if isinstance(image, str | PathLike) and not Path(image).exists():
                raise UsageError(f"there is no file {str(image)!r}", "check its path")
        options = self.cfg.INPUT.MAX_PIXELS, self.cfg.INPUT.EXIF_ORIENTATION
        pixels = [self.transform(read(image, *options)) for image in images]
        return torch.stack(pixels) if pixels else torch.empty(0, 3, *self.cfg.INPUT.SIZE)

    def colours(self, pixels: Tensor) -> Tensor:
        """Images (images, 3, H, W) that `pixels` returned, as colours from 0 to 1."""
        image = self.cfg.INPUT
        if "normalize" not in image.TRANSFORMS:
            return pixels.clamp(0, 1)
        mean, std = (
            torch.tensor(list(values))[:, None, None]
            for values in (image.PIXEL_MEAN, image.PIXEL_STD)
        )
        return (pixels * std + mean).clamp(0, 1)

    def probabilities(
        self, images: Pixels | Tensor | Sequence[Pixels], class_names: Sequence[str] | None = None
    ) -> Tensor:
        """The probability of each class: (images, classes), fp32, on the CPU; calibrated by
        `calibration`, if any.

        Args:
            images: files, contents of files or PIL images, or one of them; or a tensor (images,
                [views,] 3, H, W).
            class_names: other names to choose from; by default those that the prompts were learned
                on.

        Raises:
            UsageError: an image cannot be read, a class name is empty, given twice or too long, or
                a logit is not finite.
        """
        return self.repaired(self.logits(images, class_names), class_names).softmax(dim=-1)

    def repaired(self, logits: Tensor, class_names: Sequence[str] | None = None) -> Tensor:
        """Logits of these class names after the temperature of the calibration and, for other
        names, DAC.

        They are the same without a calibration. No predicted class changes.
        """
        if self.calibration is None or not len(logits):
            return logits
        found = self.calibration.temperature.apply(logits)
        names = self._method_for(class_names).class_names
        if names != list(with_spaces(self.class_names)) and (distances := self.distances(names)):
            found = distances.apply(found)
        return torch.from_numpy(found).float()

    def distances(self, class_names: Sequence[str]) -> "Distances | None":
        """DAC for other class names; None for a method whose texts depend on the image, or that has
        none.
        """
        return self._distances(*with_spaces(class_names))

    def check_asked(
        self, unknown: bool, coverage: float | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        """Raise UsageError unless `unknown` or `sets` can answer for these class names."""
        if not unknown and coverage is None:
            return
        if self.calibration is None:
            raise UsageError(
                f"{self.source} has no calibration", "fit one by tools/calibrate.py", self.source
            )
        self.calibration.check_asked(
            list(class_names or self.class_names), unknown, coverage, self.source
        )

    def unknown(self, logits: Tensor) -> Tensor:
        """Which images the model had better not answer, (images,): too many such answers would be
        wrong.

        Args:
            logits: of `logits`, for the model's own class names.

        Raises:
            UsageError: it has no calibration, that promises no error, or the logits are of another
                number of classes.
        """
        self.check_asked(unknown=True)
        self.check_own(logits)
        return torch.from_numpy(~self.calibration.threshold.apply(logits))  # type: ignore[union-attr]

    def sets(self, logits: Tensor, coverage: float) -> Tensor:
        """The set of classes of each image, (images, classes).

        It has the right class for `coverage` of the images, between 0 and 1. Other arguments and
        errors are those of `unknown`.
        """
        self.check_asked(unknown=False, coverage=coverage)
        self.check_own(logits)
        return torch.from_numpy(self.calibration.sets.apply(logits, coverage))  # type: ignore[union-attr]

    def check_own(self, logits: Tensor) -> None:
        """Raise UsageError for logits of another number of classes than the model's own."""
        own = len(self.class_names)
        if logits.dim() != 2 or logits.shape[1] != own:
            what = (
                f"logits of the shape {tuple(logits.shape)} are not of the {own} classes of "
                f"{self.source}"
            )
            raise UsageError(what, "give those of `logits` without other class names", self.source)

    def logits(
        self, images: Pixels | Tensor | Sequence[Pixels], class_names: Sequence[str] | None = None
    ) -> Tensor:
        """The scaled cosine similarities before softmax; arguments and errors are those of
        `probabilities`.
        """
        method = self._method_for(class_names)
        batches = (
            method.model_inference(batch.to(self.device)).cpu() for batch in self._batches(images)
        )
        logits = torch.cat([torch.empty(0, len(method.class_names)), *batches])
        if not logits.isfinite().all():
            remedy = "use the checkpoint of another epoch, or train again"
            raise UsageError(f"{self.source} gives logits that are not finite", remedy, self.source)
        return logits

    def check_logits(self, class_names: Sequence[str] | None = None) -> None:
        """Compute the text features of these names, and the logits of one black image; errors are
        those of `logits`.
        """
        self.logits(torch.zeros(1, 3, *self.cfg.INPUT.SIZE), class_names)

    def model_for(self, class_names: Sequence[str] | None = None) -> PromptedCLIP:
        """The model that computes the logits of these class names."""
        return self._method_for(class_names).model

    def _batches(self, images: Pixels | Tensor | Sequence[Pixels]) -> Iterator[Tensor]:
        if isinstance(images, Tensor):
            yield from (images[None] if images.dim() == 3 else images).split(BATCH)
            return
        several = [images] if isinstance(images, Pixels) else list(images)
        size = max(1, BATCH // self.views)
        for start in range(0, len(several), size):
            yield self.pixels(several[start : start + size])

    def _fit_distances(self, *class_names: str) -> "Distances | None":
        from .calibrated import distances_of

        sentence = self.description.template or self.description.dataset_template or TEMPLATE
        return distances_of(self._method_for(class_names), self._own, sentence)

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
            what = f"{self.source} was learned for its own classes and cannot take other names"
            raise UsageError(what, "leave out the class names", self.source)
        assemble_model(method, clip=self.clip)
        if self.checkpoint is not None:
            method.checkpoints.load(self.checkpoint, self.source)
        method.model.eval()
        return method
