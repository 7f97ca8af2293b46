"""Several sentences for each class, in which nothing is learned."""

from collections.abc import Sequence

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from clip import TextPrompts, tokenize

from .prompted import PromptedCLIP, PromptLearner, normalize

# Of Tip-Adapter and of the methods that follow it, for ImageNet and other sets of many kinds of classes.
SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
EIGHTY = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


class TemplateEnsemble(PromptLearner):
    """Sentences for each class, of T templates with {} for the class name."""

    def __init__(self, templates: Sequence[str], classnames: Sequence[str], context_length: int):
        super().__init__()
        rows = [tokenize([text.replace("{}", name) for name in classnames], context_length) for text in templates]
        self.register_buffer("ids", torch.stack(rows), persistent=False)  # (T, C, context length)

    def text(self, image_features: Tensor) -> TextPrompts:
        """Those of the first template."""
        return TextPrompts(self.ids[0])


class EnsembleCLIP(PromptedCLIP):
    """Images -> logits; the text feature of a class is the mean of its sentences' unit features, of unit length."""

    prompt_learner: TemplateEnsemble

    @torch.no_grad()
    def encode_text(self, image_features: Tensor) -> Tensor:
        """(classes, joint), encoded once until the model moves or changes its mode."""
        if self._text is None:
            clip, sentences = self.clip, self.prompt_learner.ids
            features = [normalize(self.towers.encode_text(clip, TextPrompts(ids))) for ids in sentences]
            self._text = None, torch.stack(features).mean(dim=0)
        return self._text[1]
