from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import (
    BlockAdapter,
    adapt,
    image_blocks,
    text_blocks,
    text_width,
    token_dropout,
    vision_width,
)
from common.errors import UsageError

from .base import require_vit
from .base.prompts import TemplatePrompts
from .base.settings import MethodSettings
from .base.steps import SteppedMethod


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
    """Low-rank changes of the maps of a block's attention.

    Args:
        width: of the tower.
        rank: of the changes.
        scale: of B A x.
        params: the maps that change, some of q, k, v and o (the output projection).
        p: probability of dropout on the input of each change, in training.
    """

    def __init__(self, width: int, rank: int, scale: float, params: Sequence[str], p: float):
        super().__init__()
        self.p = p
        self.scale = scale
        self.width = width
        for param in params:
            self.add_module("proj" if param == "o" else f"{param}_proj", LowRank(width, rank))
        places = {
            "attention_input": set(params) & set("qkv"),
            "attention_output": set(params) & {"o"},
        }
        self.defined = frozenset(place for place, there in places.items() if there)

    @property
    def is_stochastic(self) -> bool:
        return self.training and self.p > 0

    def dropped(self, x: Tensor) -> Tensor:
        return token_dropout(x, self.p) if self.is_stochastic else x

    def attention_input(self, x: Tensor) -> Tensor:
        maps: list[Any] = [self._modules.get(f"{param}_proj") for param in "qkv"]
        low = [self.dropped(x) @ change.w_lora_A.T for change in maps if change is not None]
        none = x.new_empty(self.width, 0)
        # One product for all
        up = torch.block_diag(*(none if change is None else change.w_lora_B for change in maps))
        return self.scale * torch.cat(low, dim=-1) @ up.T

    def attention_output(self, x: Tensor) -> Tensor:
        return self.scale * self.get_submodule("proj")(self.dropped(x))

    def folded(self, block: Any) -> dict[str, Tensor]:
        like = next(self.parameters())
        tensors = {}
        eye = torch.eye(self.width, dtype=like.dtype, device=like.device)
        if "attention_input" in self.defined:
            tensors["attn.in_proj_weight"] = block.attn.in_proj_weight + self.attention_input(eye).T
        if "attention_output" in self.defined:
            tensors["attn.out_proj.weight"] = (
                block.attn.out_proj.weight + self.attention_output(eye).T
            )
        return tensors


# Layers from 0, in towers of 12 layers.
POSITIONS = {
    "bottom": (0, 4),
    "mid": (4, 8),
    "up": (8, 12),
    "half-up": (6, 12),
    "half-bottom": (0, 6),
    "top3": (9, 12),
}
POSITIONS |= {"all": (0, 12)}
OF_24 = "half-up", "half-bottom", "all"  # these have a meaning in a tower of 24 layers, too


@dataclass(frozen=True)
class CLIPLoRASettings(MethodSettings):
    """R and ALPHA are those of the low-rank maps B A, which are scaled by ALPHA / sqrt(R); PARAMS
    are the maps of attention that have them; N_ITERS times DATASET.NUM_SHOTS is the number of
    steps.
    """

    R: int = 2
    ALPHA: int | float = 1
    DROPOUT_RATE: int | float = 0.25
    PARAMS: list[str] = field(default_factory=lambda: ["q", "k", "v"])
    ENCODER: Literal["both", "text", "vision"] = "both"
    POSITION: Literal["all", "bottom", "mid", "up", "half-up", "half-bottom", "top3"] = "all"
    N_ITERS: int = 500
    ranges = {
        "R": (1, 1024),
        "ALPHA": (0, 10_000),
        "DROPOUT_RATE": (0, 0.95),
        "N_ITERS": (1, 100_000),
    }

    def check(self):
        if (
            not self.PARAMS
            or not set(self.PARAMS) <= set("qkvo")
            or len(set(self.PARAMS)) < len(self.PARAMS)
        ):
            raise UsageError(f"PARAMS is {list(self.PARAMS)}", "give some of q, k, v and o")

    def lora(self, width: int) -> LoRA:
        return LoRA(width, self.R, self.ALPHA / self.R**0.5, self.PARAMS, self.DROPOUT_RATE)


def layers_of(position: str, tower: str, depth: int) -> range:
    """The layers of a tower at a position; UsageError if that has no meaning in a tower so deep."""
    if position == "all":
        return range(depth)
    if depth > 12 and (position not in OF_24 or depth != 24):
        fault = f"TRAINER.CLIPLORA.POSITION is {position}, and the {tower} tower has {depth} layers"
        remedy = f"give {', '.join(OF_24)} for 24 layers, or choose another backbone"
        raise UsageError(fault, remedy)
    first, end = POSITIONS[position]
    return range(2 * first, 2 * end) if depth == 24 else range(first, min(end, depth))


class LoRALearner(TemplatePrompts):
    """The adapters of both towers; `layer_<i>` counts the adapted blocks, those of the text tower
    first.
    """

    logit_scale = 100.0

    def __init__(self, clip: Any, classnames: list[str], settings: CLIPLoRASettings):
        super().__init__("a photo of a {}.", classnames, clip)
        self.adapters: list[tuple[str, int, LoRA]] = []
        towers = ("text", text_width, text_blocks), ("vision", vision_width, image_blocks)
        for tower, width_of, blocks_of in towers:
            if settings.ENCODER in ("both", tower):
                layers = layers_of(settings.POSITION, tower, len(blocks_of(clip)))
                self.adapters += [(tower, layer, settings.lora(width_of(clip))) for layer in layers]
        if not self.adapters:
            fault = f"TRAINER.CLIPLORA.POSITION is {settings.POSITION}"
            raise UsageError(fault, "its layers do not exist: give all")
        self.extra_modules = {
            f"layer_{number}": lora for number, (*_, lora) in enumerate(self.adapters)
        }

    def install(self, clip: Any) -> None:
        for tower, layer, lora in self.adapters:
            adapt(clip if tower == "text" else clip.visual, layer, lora)


def of(value: Any) -> dict[Any, Any]:
    """A dictionary of a file, or an empty one if it is something else."""
    return value if isinstance(value, dict) else {}


@TRAINER_REGISTRY.register()
class CLIPLoRA(SteppedMethod):
    """Low-rank adaptation of CLIP's attention (Zanella and Ben Ayed, CVPRW 2024)."""

    Settings = CLIPLoRASettings
    published = ("layer_*",)
    published_file = "lora_weights.pt"

    def build_prompts(self, clip, classnames):
        require_vit(clip, "CLIPLoRA", self.cfg.MODEL.BACKBONE.NAME)
        return LoRALearner(clip, classnames, self.settings)

    @classmethod
    def of_published_file(cls, content: Any, path: str, settings: Any) -> dict[str, Any]:
        """`weights` has tensors by layer, map and name; `metadata` the settings that say what the
        layers are.
        """
        written = of(content).get("metadata")
        if not isinstance(written, dict):
            raise UsageError(
                f"{path} is not a LoRA file of CLIP-LoRA's code", "check --model-dir", path
            )
        check_same_layers(written, path, settings)
        state = {}
        for layer, parts in of(of(content).get("weights")).items():
            for part, tensors in of(parts).items():
                for name, tensor in of(tensors).items():
                    state[f"{layer}.{part}.{name}"] = tensor
        return {"state_dict": state, "epoch": 0}  # it does not say which


def check_same_layers(written: dict[str, Any], path: str, settings: Any) -> None:
    """Raise UsageError if the metadata of a file is of other settings."""
    for key in ("r", "alpha", "encoder", "position", "params"):
        name = f"TRAINER.CLIPLORA.{key.upper()}"
        here = getattr(settings, key.upper())
        expected = sorted(here) if isinstance(here, list) else here
        there = written.get(key)
        if isinstance(there, list | tuple):
            there = sorted(map(str, there))
        if there != expected:
            fault = f"{path} has {key} {there!r:.40}, and {name} is {here}"
            raise UsageError(fault, f"give that {name}", path)
