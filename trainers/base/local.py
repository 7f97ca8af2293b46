"""Logits of single patches."""

import torch
from torch import Tensor

from clip import is_vit, local_features

from .prompted import PromptedCLIP, normalize


def local_logits(model: PromptedCLIP, last_input: Tensor, text: Tensor) -> Tensor:
    """The logits of each patch, as those of LoCoOp, (batch, patches, classes), fp32.

    Args:
        model: gives the weights and the scale.
        last_input: (batch, tokens, width), the input of the image tower's last layer.
        text: (classes, joint), or (batch, classes, joint) where the texts depend on the image; of unit length.
    """
    patches = normalize(local_features(model.clip, last_input))  # (batch, patches, joint)
    if text.dim() == 3:
        pairs = zip(patches, text, strict=True)
        return torch.stack([model.logits(of_image, own) for of_image, own in pairs])
    return model.logits(patches.flatten(0, 1), text).unflatten(0, patches.shape[:2])


def has_local_logits(model: object) -> bool:
    """Whether patches can be compared with texts: a vision transformer, and logits that are similarities."""
    return isinstance(model, PromptedCLIP) and type(model).logits is PromptedCLIP.logits and is_vit(model.clip)
