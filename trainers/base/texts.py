"""CLIP as it is, with one text or several for each class: methods that learn nothing, and only change the text."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from clip import ImageOutput, folded_weights
from common.errors import UsageError

from .prompted import Output, PromptedCLIP, normalize
from .prompts import TemplatePrompts
from .settings import MethodSettings
from .teacher import mean_text_features
from .trainer import PromptTrainer


@dataclass(frozen=True)
class SeveralSettings(MethodSettings):
    """AGGREGATE is how the sentences of a class count: by the mean of their cosines, by the largest one, or by the
    cosine of their mean feature, which is made unit."""

    AGGREGATE: Literal["mean", "max", "unit"] = "mean"


class TextsCLIP(PromptedCLIP):
    """A model whose text features are given."""

    class_texts: Tensor | None = (
        None  # (classes, joint), with `class_of` (sentences, joint), fp32; None: the template's
    )
    class_of: Tensor | None = None  # (sentences,), the class of each: the largest logit of its sentences counts

    def _apply(self, fn: Callable, recurse: bool = True):
        for name in ("class_texts", "class_of"):
            tensor = getattr(self, name)
            moved = None if tensor is None else fn(tensor)
            setattr(self, name, moved.to(tensor.dtype) if moved is not None else None)
        return super()._apply(fn, recurse)

    def encode_text(self, image_features: Tensor) -> Tensor:
        return super().encode_text(image_features) if self.class_texts is None else self.class_texts

    def of_text(self, feature: Tensor) -> Tensor:
        return super().of_text(feature) if self.class_texts is None else feature

    def folded(self) -> dict[str, Tensor] | None:
        return folded_weights(self.clip) if self.class_of is None else None

    def output(self, images: Any | ImageOutput, text_feature: Tensor | None = None) -> Output:
        output = super().output(images, text_feature)
        if self.class_of is None:
            return output
        classes = output.logits.new_full((len(output.logits), int(self.class_of.max()) + 1), -torch.inf)
        index = self.class_of.expand(len(output.logits), -1)
        return replace(output, logits=classes.scatter_reduce(1, index, output.logits, "amax"))


class TextsTrainer(PromptTrainer):
    """A method that defines `texts`; without sentences for classes, and without `texts`, it is zero-shot CLIP."""

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

    def finish_model(self) -> None:
        if not self.sentences and self.needs_sentences:  # in an exported folder that somebody has changed
            raise UsageError(f"{type(self).__name__} has no sentences for the classes", "export it again")
        if not self.sentences:
            return
        texts, how = self.texts(), getattr(self.settings, "AGGREGATE", self.aggregate)
        if how == "max":
            owners = [label for label, sentences in enumerate(texts) for _ in sentences]
            self.model.class_of = torch.tensor(owners, device=self.device)
            texts = [[text] for sentences in texts for text in sentences]
        features = mean_text_features(self.model.frozen, texts, unit=True)
        self.model.class_texts = normalize(features) if how == "unit" else features

    def train(self) -> None:
        print(f"{type(self).__name__} learns nothing: evaluating")
        self.test()
