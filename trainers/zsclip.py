from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from clip import ImageOutput, folded_weights
from common.errors import UsageError
from common.names import CONTROL

from .base.method import Method
from .base.prompted import Output, PromptedCLIP, normalize
from .base.prompts import TemplatePrompts
from .base.settings import MethodSettings
from .base.teacher import mean_text_features


@dataclass(frozen=True)
class SeveralSettings(MethodSettings):
    """AGGREGATE is how the sentences of a class count: by the mean of their cosines, by the largest
    one, or by the cosine of their mean feature, which is made unit."""

    AGGREGATE: Literal["mean", "max", "unit"] = "mean"


class TextsCLIP(PromptedCLIP):
    """A model whose text features are given."""

    class_texts: Tensor | None = (
        None  # (classes, joint), with `counts` (sentences, joint), fp32; None: the template's
    )
    # Of the sentences of each class, in order: the largest logit of them counts
    counts: Sequence[int] = ()

    def _apply(self, fn: Callable, recurse: bool = True):
        if self.class_texts is not None:
            self.class_texts = fn(self.class_texts).to(self.class_texts.dtype)
        return super()._apply(fn, recurse)

    def encode_text(self, image_features: Tensor) -> Tensor:
        return super().encode_text(image_features) if self.class_texts is None else self.class_texts

    def of_text(self, feature: Tensor) -> Tensor:
        return super().of_text(feature) if self.class_texts is None else feature

    def folded(self) -> dict[str, Tensor] | None:
        return folded_weights(self.clip) if not self.counts else None

    def output(self, images: Any | ImageOutput, text_feature: Tensor | None = None) -> Output:
        output = super().output(images, text_feature)
        if not self.counts:
            return output
        of_classes = output.logits.split(list(self.counts), dim=1)
        return replace(
            output, logits=torch.stack([logits.amax(dim=1) for logits in of_classes], dim=1)
        )


class TextsMethod(Method):
    """A method that defines `texts`; without sentences for classes, and without `texts`, it is
    zero-shot CLIP.
    """

    Model = TextsCLIP
    learns = False
    seeded = False
    reads_sentences = True
    aggregate: ClassVar[str] = "unit"  # of a method without the setting AGGREGATE

    @property
    def sentence(self) -> str:
        """For a class that has no sentences."""
        return self.template()

    def texts(self) -> list[list[str]]:
        """The sentences of each class, at least one."""
        return self.class_sentences(self.sentence)

    def build_prompts(self, clip, classnames):
        return TemplatePrompts(self.sentence, classnames, clip)

    def after_build(self) -> None:
        # In an exported folder that somebody has changed
        if not self.sentences and self.needs_sentences:
            raise UsageError(
                f"{type(self).__name__} has no sentences for the classes", "export it again"
            )
        if not self.sentences:
            return
        texts = self.texts()
        how = getattr(self.settings, "AGGREGATE", self.aggregate)
        if how == "max":
            model: Any = self.model
            model.counts = [len(sentences) for sentences in texts]
            texts = [[text] for sentences in texts for text in sentences]
        features = mean_text_features(self.model.frozen, texts, unit=True)
        self.model.class_texts = normalize(features) if how == "unit" else features


@dataclass(frozen=True)
class ZeroshotCLIPSettings(MethodSettings):
    """TEMPLATE, a sentence with {} for the class name, replaces the dataset's."""

    TEMPLATE: str = ""

    def check(self):
        if self.TEMPLATE and ("{}" not in self.TEMPLATE or CONTROL.search(self.TEMPLATE)):
            raise UsageError(f"TEMPLATE is {self.TEMPLATE!r}", "put {} where the class name goes")


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(TextsMethod):
    """CLIP as it is, with one template for each dataset (Radford et al., 2021)."""

    Settings = ZeroshotCLIPSettings
    config_folder = "CoOp"

    @property
    def sentence(self) -> str:
        return self.settings.TEMPLATE or self.template()

    def log_lines(self):
        return [f"Template: {self.sentence}"]
