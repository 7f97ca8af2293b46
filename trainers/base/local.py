"""Logits of single patches."""

from typing import Any

import torch
from torch import Tensor

from .prompted import Output, PromptedCLIP, normalize


def local_logits(model: PromptedCLIP, output: Output) -> Tensor:
    """The logits of each patch, as those of LoCoOp, (batch, patches, classes), fp32; `output` has
    `tower.local`.
    """
    local: Any = output.tower.local
    patches = normalize(local)  # (batch, patches, joint)
    if output.text.dim() == 3:
        return torch.stack([model.logits(*pair) for pair in zip(patches, output.text, strict=True)])
    return model.logits(patches.flatten(0, 1), output.text).unflatten(0, patches.shape[:2])
