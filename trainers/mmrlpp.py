from dataclasses import dataclass
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import is_vit
from common.errors import UsageError

from .mmrl import (
    RepresentationMethod,
    RepresentationPrompts,
    RepresentationSettings,
)


@dataclass(frozen=True)
class MMRLppSettings(RepresentationSettings):
    """Those of MMRL. BETA is the weight of a layer's tokens, which are mixed with those of the
    layer before. PROJ_LORA_DIM is the rank of the change of the projection, RES_LORA_DIM that of
    each layer's change of the map.
    """

    BETA: int | float = 0.9
    PROJ_LORA_DIM: int = 64
    RES_LORA_DIM: int = 4
    ranges = {"BETA": (0, 1), "PROJ_LORA_DIM": (1, 16_384), "RES_LORA_DIM": (1, 16_384)}


class LowRankFactors(nn.ParameterDict):
    """The factors A (outputs, rank) and B (rank, inputs) of a change that starts at zero, and
    perhaps a bias.
    """

    def __init__(self, outputs: int, rank: int, inputs: int, **more: Tensor):
        factor = nn.init.kaiming_uniform_(torch.empty(outputs, rank), a=5**0.5)
        super().__init__({"A": factor, "B": torch.zeros(rank, inputs), **more})


class SharedMap(nn.Module):
    """One weight for all layers of a tower; each layer adds a low-rank change and a bias (MMRL++,
    Sec. 3).
    """

    def __init__(self, inputs: int, outputs: int, layers: int, rank: int):
        super().__init__()
        start = nn.Linear(inputs, outputs)
        self.weight = start.weight
        bias = start.bias.detach()
        self.srra = nn.ModuleList(
            LowRankFactors(outputs, rank, inputs, bias=bias.clone()) for _ in range(layers)
        )

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """(n, inputs) -> the tokens (n, outputs) of each layer."""
        shared = tokens @ self.weight.mT
        layers = list[Any](self.srra)
        return [shared + tokens @ layer["B"].mT @ layer["A"].mT + layer["bias"] for layer in layers]


class MMRLppPrompts(RepresentationPrompts):
    """The layers of a tower share a map, and the projection of the representation feature is CLIP's
    with a change.
    """

    visual_proj: Tensor

    def __init__(self, clip, classnames: list[str], template: str, settings: MMRLppSettings):
        super().__init__(clip, classnames, template, settings)
        self.weight = float(settings.BETA)
        layers = len(settings.REP_LAYERS)
        for tower, width in self.widths.items():
            shared = SharedMap(settings.REP_DIM, width, layers, settings.RES_LORA_DIM)
            self.add_module(f"srra_r2{tower}proj", shared)
        change = LowRankFactors(self.widths["v"], settings.PROJ_LORA_DIM, clip.visual.output_dim)
        self.extra_modules: dict[str, Any] = {"image_encoder": change}
        self.register_buffer("visual_proj", clip.visual.proj.detach(), persistent=False)

    def tokens(self, tower: str) -> list[Tensor]:
        return getattr(self, f"srra_r2{tower}proj")(self.compound_rep_tokens)

    @property
    def projection(self) -> Tensor:
        change = self.extra_modules["image_encoder"]
        return self.visual_proj.to(change["A"].dtype) + change["A"] @ change["B"]


@TRAINER_REGISTRY.register()
class MMRLpp(RepresentationMethod):
    """MMRL++: representation tokens with shared maps, which are carried from layer to layer (Guo
    and Gu, 2025).
    """

    Settings = MMRLppSettings
    Prompts = MMRLppPrompts
    published_sections = ("TRAINER.MMRLpp",)
    published = ("representation_learner.*", "image_encoder.A", "image_encoder.B")
    caveat = "published with values chosen for each dataset, in cross-dataset tests for each target"

    def build_prompts(self, clip, classnames):
        if not is_vit(clip):
            fault = (
                "MMRLpp changes the projection of CLIP's class token, and "
                f"{self.cfg.MODEL.BACKBONE.NAME} has none"
            )
            raise UsageError(fault, "choose MMRL, which learns a projection of its own")
        return super().build_prompts(clip, classnames)
