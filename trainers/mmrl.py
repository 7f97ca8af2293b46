from copy import deepcopy
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from .base.prompts import mapped
from .base.representations import (
    RepresentationMethod,
    RepresentationPrompts,
    RepresentationSettings,
)


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
