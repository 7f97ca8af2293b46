from dataclasses import dataclass
from typing import Literal

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from .base.feature_method import FeatureSettings, FeatureSpec, FittedMethod, Support
from .base.head import Head
from .base.prompted import normalize

LEAST = 1e-3  # of LAMBDA
FIXED = 0.1  # LAMBDA of the rule `fixed`


@dataclass(frozen=True)
class SSTextSettings(FeatureSettings):
    """RULE is how LAMBDA of a class follows from the images. SStext+ also repels the weights from
    their mean.
    """

    RULE: Literal["SStext", "SStext+", "by_shots", "by_performance", "fixed"] = "SStext"


class TextWeights(Head):
    """A weight vector for each class, (classes, joint), compared with the image by its
    direction.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.weight = nn.Buffer(torch.zeros(classes, width))

    def classify(self, image, text, scale):
        return scale * normalize(image) @ normalize(self.weight).T


@TRAINER_REGISTRY.register()
class SSText(FittedMethod):
    """Text features moved towards the images of their classes in closed form (Silva-Rodriguez et
    al., MICCAI 2025).

    A class without images keeps its text feature.
    """

    Settings = SSTextSettings
    checkpoint_folder = "ss_text"
    spec = FeatureSpec(unit_text=False)

    def build_head(self, classes, width, rows):
        return TextWeights(classes, width)

    def start(self, support: Support) -> None:
        text = self.model.class_texts
        rows = support.rows
        labels = support.row_labels
        scale = self.model.scale
        sums = torch.zeros_like(text).index_add_(0, labels, rows)
        # Of the text against the images
        strength = len(rows) * self.penalties(support).clamp(min=LEAST)
        weight = text + scale * sums / strength[:, None]
        if self.settings.RULE == "SStext+":
            weight = weight - normalize(2 * weight - weight.mean(dim=0))
        self.head.weight.data = weight

    def penalties(self, support: Support) -> Tensor:
        """LAMBDA of each class, (classes,); infinite if the images do not count."""
        text = self.model.class_texts
        rows = support.rows
        labels = support.row_labels
        counts = labels.bincount(minlength=len(text))
        if self.settings.RULE in ("SStext", "fixed"):
            return torch.full_like(
                text[:, 0], 1 / len(rows) if self.settings.RULE == "SStext" else FIXED
            )
        if self.settings.RULE in ("SStext+", "by_shots"):
            return 1 / counts
        p = (self.model.scale * normalize(rows) @ normalize(text).T).softmax(dim=1)
        means = (
            torch.zeros_like(text[:, 0]).index_add_(0, labels, p[torch.arange(len(rows)), labels])
            / counts
        )
        return torch.where(counts > 0, means, means[counts > 0].mean())
