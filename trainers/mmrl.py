from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import Edit, ImageOutput, Schedule, TextPrompts
from common.errors import UsageError

from .base import require_vit
from .base.checkpoints import of_other_classes
from .base.prompted import normalize
from .base.prompts import TemplatePrompts, check_depth, gaussian, mapped, text_width, vision_width
from .base.settings import MethodSettings
from .base.teacher import TaughtTrainer, cosine_distance


@dataclass(frozen=True)
class MMRLSettings(MethodSettings):
    """ALPHA weighs the feature of the class token against that of the representation tokens, REG_WEIGHT the distances
    from the frozen CLIP; REP_LAYERS count from 1. TASK CD: a published checkpoint was trained on ImageNet."""

    ALPHA: int | float = 0.7
    REG_WEIGHT: int | float = 1.0
    N_REP_TOKENS: int = 5
    REP_DIM: int = 512
    REP_LAYERS: list[int] = field(default_factory=lambda: [6, 7, 8, 9, 10, 11, 12])
    TASK: str = ""
    ranges = {"ALPHA": (0, 1), "REG_WEIGHT": (0, 1_000_000), "N_REP_TOKENS": (1, 256), "REP_DIM": (1, 16_384)}

    def check(self):
        layers = list(self.REP_LAYERS)
        if not layers or layers not in [list(range(first, first + len(layers))) for first in range(1, 101)]:
            raise UsageError(f"REP_LAYERS is {layers}", "give layers from 1 in order and without gaps: [6, 7, 8]")
        if self.TASK not in ("", "B2N", "FS", "CD"):
            raise UsageError(f"TASK is {self.TASK!r}", "it can be B2N, FS, CD or empty")


class MMRLPrompts(TemplatePrompts):
    """Tokens of a space that both towers share, mapped into the upper layers of each (MMRL, Sec. 3)."""

    name, logit_scale, read = "representation_learner", 100.0, ("prompts",)

    def __init__(self, clip, classnames: list[str], template: str, settings: MMRLSettings):
        super().__init__(template, classnames, clip.context_length)
        self.before, widths = int(settings.REP_LAYERS[0]) - 1, {"v": vision_width(clip), "t": text_width(clip)}
        self.compound_rep_tokens = gaussian(settings.N_REP_TOKENS, settings.REP_DIM)
        for tower, width in widths.items():  # the maps of a tower are copies of one
            maps = [nn.Linear(settings.REP_DIM, width)] * len(settings.REP_LAYERS)
            self.add_module(f"compound_rep_tokens_r2{tower}proj", nn.ModuleList(map(deepcopy, maps)))
        self.alpha = settings.ALPHA
        head = widths["v"] ** -0.5 * torch.randn(widths["v"], clip.visual.output_dim)
        self.extra_modules: dict[str, Any] = {"image_encoder": nn.ParameterDict({"proj_rep": head})}

    def schedule(self, maps: Any) -> Schedule:
        first, *later = mapped(list(maps), [self.compound_rep_tokens] * len(maps))
        return [*[Edit()] * self.before, Edit(0, first, after_norm=True), *(Edit(len(new), new) for new in later)]

    def text(self, image_features: Tensor) -> TextPrompts:
        return TextPrompts(self.ids, deep=self.schedule(self.compound_rep_tokens_r2tproj))

    def vision(self) -> Schedule:
        return self.schedule(self.compound_rep_tokens_r2vproj)

    def image(self, tower: ImageOutput, learned: bool) -> Tensor:
        """The feature of the class token, for learned classes mixed with that of the representation tokens."""
        feature = normalize(tower.feature)
        return self.alpha * feature + (1 - self.alpha) * self.representation(tower) if learned else feature

    def representation(self, tower: ImageOutput) -> Tensor:
        """The unit feature (batch, joint) of the mean of the representation tokens."""
        tokens: Any = tower.prompts
        head = self.extra_modules["image_encoder"]["proj_rep"]
        return normalize(tokens.mean(dim=1).to(head.dtype) @ head)


@TRAINER_REGISTRY.register()
class MMRL(TaughtTrainer):
    """Multi-Modal Representation Learning (Guo and Gu, CVPR 2025)."""

    Settings = MMRLSettings
    reads_template = True
    saved_as = "MultiModalRepresentationLearner"
    published = ("representation_learner.*", "image_encoder.proj_rep")
    caveat = "published with a weight of the regularisation chosen for each dataset"

    def build_prompts(self, clip, classnames):
        require_vit(clip, "MMRL", self.cfg.MODEL.BACKBONE.NAME)
        check_depth(clip, "the last of TRAINER.MMRL.REP_LAYERS", self.settings.REP_LAYERS[-1])
        return MMRLPrompts(clip, classnames, self.template(), self.settings)

    def before_load(self, checkpoint, path):
        elsewhere = self.settings.TASK == "CD" and self.cfg.DATASET.NAME != "ImageNet"
        return of_other_classes(checkpoint) if elsewhere else checkpoint

    def loss(self, output, labels):
        """Cross-entropy of both features, and the first one and the text's held near the frozen CLIP's."""
        model, alpha, text = self.model, self.settings.ALPHA, output.text
        image, image_rep = normalize(output.tower.feature), model.prompt_learner.representation(output.tower)
        logits, logits_rep = model.logits(image, text), model.logits(image_rep, text)
        parts = {
            "loss_ce": F.cross_entropy(logits, labels),
            "loss_ce_rep": F.cross_entropy(logits_rep, labels),
            "loss_reg_image": cosine_distance(image, self.teacher.image_features(output.images)),
            "loss_reg_text": cosine_distance(text, self.teacher.text_features),
        }
        ce, ce_rep, *distances = parts.values()
        loss = alpha * ce + (1 - alpha) * ce_rep + self.settings.REG_WEIGHT * sum(distances)
        return loss, parts
