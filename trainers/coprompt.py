import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UsageError

from .base.projection import bottleneck
from .base.prompted import PromptedCLIP, normalize
from .base.teacher import Teacher, cosine_distance, encode_texts
from .maple import MaPLe, MaPLeSettings

# Shares of the adapters' outputs in the features
IMAGE = 0.1
TEXT = 0.2


@dataclass(frozen=True)
class CoPromptSettings(MaPLeSettings):
    """W is the weight of the consistency with the frozen CLIP, DISTILL its measure: one minus the
    cosine, or the mean squared difference of the unit features."""

    W: int | float = 1.0
    DISTILL: Literal["cosine", "mse"] = "cosine"
    ranges = {"W": (0, 1_000_000)}


class Adapter(nn.Module):
    """A bottleneck on features (..., width), in fp32, whose output is mixed with its input
    (CoPrompt, Sec. 3.3).
    """

    def __init__(self, width: int, share: float):
        super().__init__()
        self.share = share
        self.fc = bottleneck(width, max(1, width // 4))

    def forward(self, feature: Tensor) -> Tensor:
        feature = feature.float()
        return feature.lerp(self.fc(feature).float(), self.share)


class CoPromptCLIP(PromptedCLIP):
    """MaPLe's model with an adapter behind each tower.

    In training its images may be two views (2, batch, 3, H, W): it reads the first one, and the
    teacher the second.
    """

    def of_tower(self, tower):
        return normalize(self.adapter_image(tower.feature))

    def of_text(self, feature):
        return normalize(self.adapter_text(feature))

    def output(self, images, text_feature=None):
        if not isinstance(images, Tensor) or images.dim() < 5:
            return super().output(images, text_feature)
        return replace(super().output(images[0], text_feature), images=images)


@TRAINER_REGISTRY.register()
class CoPrompt(MaPLe):
    """Consistency-guided Prompt learning (Roy and Etemad, ICLR 2024)."""

    Settings = CoPromptSettings
    Model = CoPromptCLIP
    reads_sentences = True
    published_sections = ("TRAINER.CoPrompt",)
    published_outside = ("W", "DISTILL")
    published = (*MaPLe.published, "adapter_image.*", "adapter_text.*")
    caveat = "published with values chosen for each dataset"

    def build_prompts(self, clip, classnames):
        learner = super().build_prompts(clip, classnames)
        width = clip.visual.output_dim
        learner.extra_modules = {
            "adapter_image": Adapter(width, IMAGE),
            "adapter_text": Adapter(width, TEXT),
        }
        return learner

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher(self.model, self.class_sentences(self.template()))

    def check_training(self):
        super().check_training()
        if len(counts := {len(texts) for texts in self.teacher.texts}) > 1:
            fault = (
                f"the classes have {min(counts)} to {max(counts)} sentences, and CoPrompt draws "
                "one number for all"
            )
            raise UsageError(fault, "give as many for each class in DATASET.SENTENCES")

    @cached_property
    def teacher_texts(self) -> Tensor:
        """(sentences, C, joint), fp32, normalised: the frozen CLIP's features of the n-th sentence
        of each class.
        """
        texts = [
            text
            for of_all_classes in zip(*self.teacher.texts, strict=True)
            for text in of_all_classes
        ]
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            features = normalize(encode_texts(self.model.frozen, texts, self.device))
        return features.unflatten(0, (-1, len(self.class_names)))

    def parse_batch_train(self, batch):
        """Two views (2, batch, 3, H, W), if the batch has them, and the labels."""
        views = batch["img"]
        if not isinstance(views, list):
            return super().parse_batch_train(batch)
        images = torch.stack([view.to(self.device, non_blocking=True) for view in views])
        return images, batch["label"].to(self.device, non_blocking=True)

    def loss(self, output, labels):
        """Cross-entropy, and the distances of both features from the frozen CLIP's (Sec. 3.2).

        The frozen CLIP reads the second view, and one sentence of each class; its number is drawn
        for all classes.
        """
        views = output.images
        teacher_image = self.teacher.image_features(views if views.dim() < 5 else views[-1])
        teacher_text = self.teacher_texts[random.randint(0, len(self.teacher_texts) - 1)]
        distance = cosine_distance if self.settings.DISTILL == "cosine" else F.mse_loss
        consistency = distance(output.text, teacher_text) + distance(output.image, teacher_image)
        ce = F.cross_entropy(output.logits, labels)
        return ce + self.settings.W * consistency, {"loss_ce": ce, "loss_consistency": consistency}
