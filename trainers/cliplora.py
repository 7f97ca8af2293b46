from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import BlockAdapter, adapt, token_dropout
from common.errors import UsageError

from .base import require_vit
from .base.prompts import TemplatePrompts
from .base.settings import MethodSettings
from .base.steps import SteppedTrainer, shots_of

# Layers from 0, in towers of 12 layers; only three of these have a meaning in a tower of 24.
POSITIONS = {"bottom": (0, 4), "mid": (4, 8), "up": (8, 12), "half-up": (6, 12), "half-bottom": (0, 6), "top3": (9, 12)}
POSITIONS |= {"all": (0, 12)}
OF_24 = {"half-up": (12, 24), "half-bottom": (0, 12), "all": (0, 24)}


@dataclass(frozen=True)
class CLIPLoRASettings(MethodSettings):
    """R and ALPHA are those of the low-rank maps B A, which are scaled by ALPHA / sqrt(R); PARAMS are the maps of
    attention that have them; N_ITERS times DATASET.NUM_SHOTS is the number of steps."""

    R: int = 2
    ALPHA: int | float = 1
    DROPOUT_RATE: int | float = 0.25
    PARAMS: list[str] = field(default_factory=lambda: ["q", "k", "v"])
    ENCODER: Literal["both", "text", "vision"] = "both"
    POSITION: Literal["all", "bottom", "mid", "up", "half-up", "half-bottom", "top3"] = "all"
    N_ITERS: int = 500
    ranges = {"R": (1, 1024), "ALPHA": (0, 10_000), "DROPOUT_RATE": (0, 0.95), "N_ITERS": (1, 100_000)}

    def check(self):
        if not self.PARAMS or not set(self.PARAMS) <= set("qkvo") or len(set(self.PARAMS)) < len(self.PARAMS):
            raise UsageError(f"PARAMS is {list(self.PARAMS)}", "give some of q, k, v and o")


class LowRank(nn.Module):
    """x -> B A x, without the scale."""

    def __init__(self, width: int, rank: int):
        super().__init__()
        bound = width**-0.5
        self.w_lora_A = nn.Parameter(torch.empty(rank, width).uniform_(-bound, bound))
        self.w_lora_B = nn.Parameter(torch.zeros(width, rank))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w_lora_A.T @ self.w_lora_B.T


class LoRA(BlockAdapter):
    """Low-rank changes of a block's attention (CLIP-LoRA, Sec. 3)."""

    def __init__(self, width: int, settings: CLIPLoRASettings):
        super().__init__()
        self.p, self.scale = settings.DROPOUT_RATE, settings.ALPHA / settings.R**0.5
        for param in settings.PARAMS:
            self.add_module("proj" if param == "o" else f"{param}_proj", LowRank(width, settings.R))

    @property
    def draws(self) -> bool:
        return self.training and self.p > 0

    def change(self, name: str, x: Tensor) -> Tensor:
        """(rows, tokens, width) to the same; zero without such a map."""
        low_rank = self._modules.get(name)
        if low_rank is None:
            return torch.zeros_like(x)
        return self.scale * low_rank(token_dropout(x, self.p) if self.draws else x)

    def attention_input(self, x: Tensor) -> Tensor:
        return torch.cat([self.change(name, x) for name in ("q_proj", "k_proj", "v_proj")], dim=-1)

    def attention_output(self, x: Tensor) -> Tensor | None:
        return self.change("proj", x) if "proj" in self._modules else None


class LoRALearner(TemplatePrompts):
    """The adapters of both towers; `layer_<i>` counts the adapted blocks, those of the text tower first."""

    logit_scale = 100.0

    def __init__(self, clip: Any, classnames: list[str], settings: CLIPLoRASettings):
        super().__init__("a photo of a {}.", classnames, clip.context_length)
        self.adapters: list[tuple[str, int, LoRA]] = []
        for tower, part in (("text", clip), ("vision", clip.visual)):
            depth, layers = len(part.transformer.resblocks), POSITIONS
            if depth > 12:
                layers = OF_24
                if settings.POSITION not in OF_24 or depth != 24:
                    what = f"TRAINER.CLIPLORA.POSITION is {settings.POSITION}, and the {tower} tower has {depth} layers"
                    raise UsageError(what, f"give {', '.join(OF_24)} for 24 layers, or choose another backbone")
            width = part.transformer.resblocks[0].ln_1.normalized_shape[0]
            chosen = range(*layers[settings.POSITION]) if settings.ENCODER in ("both", tower) else ()
            self.adapters += [(tower, layer, LoRA(width, settings)) for layer in chosen if layer < depth]
        if not self.adapters:
            raise UsageError(f"TRAINER.CLIPLORA.POSITION is {settings.POSITION}", "its layers do not exist: give all")
        self.extra_modules = {f"layer_{number}": lora for number, (*_, lora) in enumerate(self.adapters)}

    def install(self, clip: Any) -> None:
        for tower, layer, lora in self.adapters:
            adapt(clip if tower == "text" else clip.visual, layer, lora)


@TRAINER_REGISTRY.register()
class CLIPLoRA(SteppedTrainer):
    """Low-rank adaptation of CLIP's attention (Zanella and Ben Ayed, CVPRW 2024)."""

    Settings = CLIPLoRASettings
    published = ("layer_*",)

    def build_prompts(self, clip, classnames):
        require_vit(clip, "CLIPLoRA", self.cfg.MODEL.BACKBONE.NAME)
        return LoRALearner(clip, classnames, self.settings)

    @property
    def steps(self) -> int:
        return self.settings.N_ITERS * shots_of(self)
