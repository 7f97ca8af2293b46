"""Steps as the published code computes them, where the plain form of the towers leaves something out."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.base.lora import LoRA, LowRank


class Products(LowRank):
    """CLIP-LoRA multiplies B A first, so each branch costs as much as the frozen map beside it."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.w_lora_B @ self.w_lora_A).T


class Separate(LoRA):
    """Each branch by itself, with torch's dropout."""

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def attention_input(self, x: Tensor) -> Tensor:
        branches = (self.get_submodule(f"{part}_proj")(self.dropped(x)) for part in "qkv")
        return self.scale * torch.cat(list(branches), dim=-1)


def as_published(model: Any) -> None:
    """Change a model with plain towers; it computes the same as before, up to rounding and other masks."""
    for module in model.prompt_learner.extra_modules.values():
        for each in module.modules():
            if type(each) is LowRank:
                each.__class__ = Products
        if type(module) is LoRA:
            module.__class__ = Separate
