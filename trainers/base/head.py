"""A classifier of image features: the model of every method that never runs the towers while it
learns.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clip import ImageOutput, TextPrompts

from .prompted import PromptedCLIP, PromptLearner

SCALE = 100  # of cosine similarities in the code of Tip-Adapter and GDA, whatever the backbone's is


class Head(PromptLearner):
    """A classifier that is fitted to features. Its tensors are those of a checkpoint."""

    name = "adapter"

    def text(self, image_features: Tensor) -> TextPrompts:
        """No prompts: the text features are given."""
        return TextPrompts(torch.empty(0))

    def classify(self, image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
        """Logits (batch, classes).

        Args:
            image: (batch, joint), fp32, not normalised.
            text: (classes, joint), fp32, as `FeatureSpec.unit_text` says.
            scale: of cosine similarities.
        """
        raise NotImplementedError


class FiLM(nn.Module):
    """A scale and a shift of each feature channel (feature-wise linear modulation; Perez et al.,
    2018).
    """

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.float() + self.bias


class HeadCLIP(PromptedCLIP):
    """Images -> logits by a head on the features of a frozen CLIP."""

    prompt_learner: Head
    # (classes, joint), fp32, the text features that the head reads
    class_texts: Tensor = torch.empty(0)

    def _apply(self, fn: Callable, recurse: bool = True):
        self.class_texts = fn(self.class_texts).float()
        return super()._apply(fn, recurse)

    @property
    def features_are_frozen(self) -> bool:
        return True

    def of_tower(self, tower: ImageOutput) -> Tensor:
        return tower.feature.float()

    def encode_text(self, image_features: Tensor) -> Tensor:
        return self.class_texts

    def of_text(self, feature: Tensor) -> Tensor:
        return feature

    @property
    def scale(self) -> Any:
        return self.clip.logit_scale.exp().float()

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        with torch.autocast(image_features.device.type, enabled=False):
            return self.prompt_learner.classify(image_features, text_features, self.scale)
