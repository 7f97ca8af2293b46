"""Low-rank adapters of attention (LoRA; Hu et al., 2022)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clip import BlockAdapter, token_dropout


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
