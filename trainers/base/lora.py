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
        self.p, self.scale = p, scale
        for param in params:
            self.add_module("proj" if param == "o" else f"{param}_proj", LowRank(width, rank))

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

    def folded(self, block: Any) -> dict[str, Tensor]:
        eye, attn = torch.eye(block.attn.in_proj_weight.shape[1]), block.attn
        return {
            "attn.in_proj_weight": attn.in_proj_weight + self.attention_input(eye).T,
            "attn.out_proj.weight": attn.out_proj.weight + self.change("proj", eye).T,
        }

    def attention_output(self, x: Tensor) -> Tensor | None:
        return self.change("proj", x) if "proj" in self._modules else None
