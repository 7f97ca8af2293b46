"""Logits of single patches."""

from typing import Any

import torch
from torch import Tensor

from clip import has_local_features

from .prompted import Output, PromptedCLIP, normalize


def local_logits(model: PromptedCLIP, output: Output) -> Tensor:
    """The logits of each patch, as those of LoCoOp, (batch, patches, classes), fp32; `output` has `tower.local`."""
    found: Any = output.tower.local
    patches = normalize(found)  # (batch, patches, joint)
    if output.text.dim() == 3:
        pairs = zip(patches, output.text, strict=True)
        return torch.stack([model.logits(of_image, own) for of_image, own in pairs])
    return model.logits(patches.flatten(0, 1), output.text).unflatten(0, patches.shape[:2])


def has_local_logits(model: object) -> bool:
    """Whether patches can be compared with texts: features of patches, and logits that are similarities."""
    similarities = isinstance(model, PromptedCLIP) and type(model).logits is PromptedCLIP.logits
    return similarities and has_local_features(model.clip)  # type: ignore[attr-defined]
