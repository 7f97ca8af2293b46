from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UsageError

from .base.feature_method import FeatureMethod, FeatureSettings, FeatureSpec, Support
from .base.head import Head
from .base.prompted import normalize
from .base.settings import MethodSettings
from .base.teacher import SEVEN

# The last one as the published code spells it
VARIANTS = (
    "balanced",
    "corrected",
    "constant",
    "cosine",
    "adaptative",
)


@dataclass(frozen=True)
class ZSLPSettings(FeatureSettings):
    """20 views of each image. An epoch draws as many of them as there are images."""

    AUGMENT_EPOCH: int = 20
    ranges = {"AUGMENT_EPOCH": (0, 1000)}


@dataclass(frozen=True)
class CLAPSettings(ZSLPSettings):
    """CONSTRAINT is l2 and, joined by underscores, variants of its weights and of the distance."""

    CONSTRAINT: str = "l2"

    def check(self):
        if not {"l2"} <= set(self.CONSTRAINT.split("_")) <= {"l2", *VARIANTS}:
            raise UsageError(
                f"CONSTRAINT is {self.CONSTRAINT!r}",
                f"it is l2, or l2 with _{', _'.join(VARIANTS)}",
            )


class Prototypes(Head):
    """A vector for each class, compared with the image by its direction (Silva-Rodriguez et al.,
    2024, Sec. 3).
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.prototypes = nn.Parameter(torch.zeros(classes, width))
        self.base_text_features = nn.Buffer(torch.zeros(classes, width))
        # CLIP's, in published checkpoints; the class has this name, too
        self._buffers["logit_scale"] = torch.zeros(())

    def classify(self, image, text, scale):
        return scale * normalize(image) @ normalize(self.prototypes).T


@TRAINER_REGISTRY.register()
class ZSLP(FeatureMethod):
    """A linear probe that starts from the text features (Silva-Rodriguez et al., CVPR 2024)."""

    Settings: ClassVar[type[MethodSettings]] = ZSLPSettings
    checkpoint_folder = "adapter"
    published_sections = ("TRAINER.ADAPTER",)
    published = ("prototypes", "base_text_features")
    spec = FeatureSpec((*SEVEN, "a photo of a {}."), unit_text=False, mixed_views=True)

    def build_head(self, classes, width, rows):
        return Prototypes(classes, width)

    @torch.no_grad()
    def set_texts(self, texts):
        super().set_texts(texts)
        buffers = dict(self.head.named_buffers())
        buffers["base_text_features"].copy_(self.model.class_texts)
        buffers["logit_scale"].copy_(torch.as_tensor(self.model.scale).log())

    def start(self, support: Support) -> None:
        self.head.prototypes.data = self.model.class_texts.clone()


@TRAINER_REGISTRY.register()
class CLAP(ZSLP):
    """ZSLP held near the text features of those classes that zero-shot CLIP knows (Silva-Rodriguez
    et al., 2024).
    """

    Settings: ClassVar[type[MethodSettings]] = CLAPSettings
    spec = replace(ZSLP.spec, needs_all=True)
    multipliers: Tensor  # (classes,), as is `rho` of the adaptative variant

    @torch.no_grad()
    def start(self, support: Support) -> None:
        super().start(support)
        image = normalize(support.rows)
        text = normalize(self.model.class_texts)
        zero_shot = (self.model.scale * image @ text.T).softmax(dim=1)
        one_hot = F.one_hot(support.row_labels, len(text)).float()
        a = (zero_shot * one_hot).sum(dim=0) / one_hot.sum(dim=0)
        names = self.settings.CONSTRAINT
        a = torch.ones_like(a) if "balanced" in names else a
        a = a * len(a) / a.sum() if "corrected" in names else a
        a = a.mean().repeat(len(a)) if "constant" in names else a
        self.multipliers = a
        self.rho = torch.zeros_like(a)

    def squares(self) -> Tensor:
        """(classes,), of the distances between the prototypes and the text features."""
        return (self.head.prototypes - self.head.base_text_features).square().sum(dim=1)

    def loss(self, output, labels):
        apart = self.squares()
        if "cosine" in self.settings.CONSTRAINT:
            apart = 1 - F.cosine_similarity(self.head.prototypes, self.head.base_text_features)
        ce = F.cross_entropy(output.logits, labels)
        constraint = (self.multipliers * apart).mean()
        return ce + constraint, {"loss_ce": ce, "loss_constraint": constraint}

    @torch.no_grad()
    def after_epoch(self):
        if "adaptative" in self.settings.CONSTRAINT:
            h = self.squares()
            self.multipliers = (self.multipliers + self.rho * h).clamp_min(0)
            self.rho = h
        super().after_epoch()

    def run_state(self):
        return super().run_state() | {"multipliers": self.multipliers, "rho": self.rho}

    def load_run_state(self, state):
        super().load_run_state(state)
        self.multipliers = state["multipliers"].to(self.device)
        self.rho = state["rho"].to(self.device)
