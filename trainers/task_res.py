from dataclasses import dataclass

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import nn

from .base.feature_method import FeatureMethod, FeatureSettings, FeatureSpec
from .base.head import Head
from .base.prompted import normalize
from .base.teacher import SEVEN


@dataclass(frozen=True)
class TaskResSettings(FeatureSettings):
    """RESIDUAL_SCALE is the factor of the learned residuals."""

    AUGMENT_EPOCH: int = 20
    RESIDUAL_SCALE: int | float = 0.5
    ranges = {"RESIDUAL_SCALE": (0, 1000)}


class Residuals(Head):
    """A vector that is added to the text feature of each class (Yu et al., 2023, Sec. 3.2)."""

    name = "prompt_learner"

    def __init__(self, classes: int, width: int, scale: float):
        super().__init__()
        self.residual_scale = scale
        self.base_text_features = nn.Buffer(torch.zeros(classes, width))
        self.text_feature_residuals = nn.Parameter(torch.zeros(classes, width))

    def classify(self, image, text, scale):
        text = self.base_text_features + self.residual_scale * self.text_feature_residuals
        return scale * normalize(image) @ normalize(text).T


@TRAINER_REGISTRY.register()
class TaskRes(FeatureMethod):
    """Task residuals: text features that move, without a text tower (Yu et al., CVPR 2023)."""

    Settings = TaskResSettings
    published_sections = ("TRAINER.TaskRes",)
    published = ("text_feature_residuals", "base_text_features")
    spec = FeatureSpec((*SEVEN, "a photo of a {}."), unit_text=False)

    def build_head(self, classes, width, rows):
        return Residuals(classes, width, self.settings.RESIDUAL_SCALE)

    def start_training(self, epochs, batches):
        super().start_training(epochs, batches)
        # MODEL.INIT_WEIGHTS may have loaded those of its run
        self.set_texts(self.model.class_texts)

    def set_texts(self, texts):
        super().set_texts(texts)
        self.head.base_text_features.copy_(self.model.class_texts)
