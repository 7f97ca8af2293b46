from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import Edit, ImageOutput, Schedule, TextPrompts
from common.errors import UsageError

from .base.checkpoints import of_other_classes
from .base.prompted import normalize
from .base.prompts import TemplatePrompts, check_depth, gaussian, mapped, text_width, vision_width
from .base.settings import MethodSettings
from .base.teacher import TaughtMethod, cosine_distance
from .base.trainer import require_vit


@dataclass(frozen=True)
class RepresentationSettings(MethodSettings):
    """ALPHA weighs the feature of the class token against that of the representation tokens,
    REG_WEIGHT the distances from the frozen CLIP; REP_LAYERS count from 1. TASK CD: a published
    checkpoint was trained on ImageNet.
    """

    ALPHA: int | float = 0.7
    REG_WEIGHT: int | float = 1.0
    N_REP_TOKENS: int = 5
    REP_DIM: int = 512
    REP_LAYERS: list[int] = field(default_factory=lambda: [6, 7, 8, 9, 10, 11, 12])
    TASK: str = ""
    ranges = {
        "ALPHA": (0, 1),
        "REG_WEIGHT": (0, 1_000_000),
        "N_REP_TOKENS": (1, 256),
        "REP_DIM": (1, 16_384),
    }

    def check(self):
        layers = list(self.REP_LAYERS)
        first = layers[0] if layers else 0
        if not 1 <= first <= 100 or layers != list(range(first, first + len(layers))):
            remedy = "give layers from 1 in order and without gaps: [6, 7, 8]"
            raise UsageError(f"REP_LAYERS is {layers}", remedy)
        if self.TASK not in ("", "B2N", "FS", "CD"):
            raise UsageError(f"TASK is {self.TASK!r}", "it can be B2N, FS, CD or empty")


class RepresentationPrompts(TemplatePrompts):
    """The representation tokens; a subclass defines how they enter the towers and how they become a
    feature.
    """

    name = "representation_learner"
    logit_scale = 100.0
    read = ("prompts",)
    weight = 1.0  # of a layer's tokens, in the mix with those of the layer before

    def __init__(
        self, clip, classnames: list[str], template: str, settings: RepresentationSettings
    ):
        super().__init__(template, classnames, clip)
        self.before = int(settings.REP_LAYERS[0]) - 1
        self.alpha = settings.ALPHA
        self.widths = {"v": vision_width(clip), "t": text_width(clip)}
        self.compound_rep_tokens = gaussian(settings.N_REP_TOKENS, settings.REP_DIM)

    def tokens(self, tower: str) -> list[Tensor]:
        """The tokens (n, width) that enter each of the layers of a tower, `v` or `t`."""
        raise NotImplementedError

    @property
    def projection(self) -> Tensor:
        """(vision width, joint), of the mean of the representation tokens."""
        raise NotImplementedError

    def schedule(self, tower: str) -> Schedule:
        first, *later = self.tokens(tower)
        deep = [Edit(len(new), new, weight=self.weight) for new in later]
        return [*[Edit()] * self.before, Edit(0, first, after_norm=True), *deep]

    def text(self, image_features: Tensor) -> TextPrompts:
        return TextPrompts(self.ids, deep=self.schedule("t"))

    def vision(self) -> Schedule:
        return self.schedule("v")

    def image(self, tower: ImageOutput, learned: bool) -> Tensor:
        """The feature of the class token, for learned classes mixed with that of the representation
        tokens.
        """
        feature = normalize(tower.feature)
        if not learned:
            return feature
        return self.alpha * feature + (1 - self.alpha) * self.representation(tower)

    def representation(self, tower: ImageOutput) -> Tensor:
        """The unit feature (batch, joint) of the mean of the representation tokens."""
        tokens: Any = tower.prompts
        projection = self.projection
        return normalize(tokens.mean(dim=1).to(projection.dtype) @ projection)


class RepresentationMethod(TaughtMethod):
    """A method that learns representation tokens; its `Settings` are `RepresentationSettings`."""

    Settings: ClassVar[type[MethodSettings]] = RepresentationSettings
    Prompts: ClassVar[type[RepresentationPrompts]]
    reads_template = True
    checkpoint_folder = "MultiModalRepresentationLearner"

    def build_prompts(self, clip, classnames):
        name = type(self).__name__
        require_vit(clip, name, self.cfg.MODEL.BACKBONE.NAME)
        check_depth(
            clip, f"the last of TRAINER.{self.section()}.REP_LAYERS", self.settings.REP_LAYERS[-1]
        )
        return self.Prompts(clip, classnames, self.template(), self.settings)

    def before_load(self, checkpoint, path):
        elsewhere = self.settings.TASK == "CD" and self.cfg.DATASET.NAME != "ImageNet"
        return of_other_classes(checkpoint) if elsewhere else checkpoint

    def loss(self, output, labels):
        """Cross-entropy of both features, and the first one and the text's held near the frozen
        CLIP's.
        """
        model: Any = self.model
        alpha = self.settings.ALPHA
        text = output.text
        image = normalize(output.tower.feature)
        image_rep = model.prompt_learner.representation(output.tower)
        parts = {
            "loss_ce": F.cross_entropy(model.logits(image, text), labels),
            "loss_ce_rep": F.cross_entropy(model.logits(image_rep, text), labels),
            "loss_reg_image": cosine_distance(image, self.teacher.image_features(output.images)),
            "loss_reg_text": cosine_distance(text, self.teacher.text_features),
        }
        ce, ce_rep, *distances = parts.values()
        near = self.settings.REG_WEIGHT * sum(distances)
        return alpha * ce + (1 - alpha) * ce_rep + near, parts


class MMRLPrompts(RepresentationPrompts):
    """Each layer of a tower has a linear map of its own, and the representation feature a
    projection (MMRL, Sec. 3).
    """

    def __init__(
        self, clip, classnames: list[str], template: str, settings: RepresentationSettings
    ):
        super().__init__(clip, classnames, template, settings)
        for tower, width in self.widths.items():  # the maps of a tower are copies of one
            maps = [nn.Linear(settings.REP_DIM, width)] * len(settings.REP_LAYERS)
            self.add_module(
                f"compound_rep_tokens_r2{tower}proj", nn.ModuleList(map(deepcopy, maps))
            )
        head = self.widths["v"] ** -0.5 * torch.randn(self.widths["v"], clip.visual.output_dim)
        self.extra_modules: dict[str, Any] = {"image_encoder": nn.ParameterDict({"proj_rep": head})}

    def tokens(self, tower: str) -> list[Tensor]:
        maps = list(getattr(self, f"compound_rep_tokens_r2{tower}proj"))
        return mapped(maps, [self.compound_rep_tokens] * len(maps))

    @property
    def projection(self) -> Tensor:
        return self.extra_modules["image_encoder"]["proj_rep"]


@TRAINER_REGISTRY.register()
class MMRL(RepresentationMethod):
    """Multi-Modal Representation Learning (Guo and Gu, CVPR 2025)."""

    Prompts = MMRLPrompts
    published = ("representation_learner.*", "image_encoder.proj_rep")
    caveat = "published with a weight of the regularisation chosen for each dataset"
