"""A learned form of the last linear map of the image tower, on the features before it, which are
computed once.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, projection

from .copies import substitute
from .head import SCALE, Head, HeadCLIP


def last_map(clip: CLIP) -> Any:
    """The linear map that ends the image tower: a matrix (width, joint) or a `nn.Linear`."""
    value: Any = clip
    for part in projection(clip).split("."):
        value = getattr(value, part)
    return value


def remove_projection(clip: CLIP) -> None:
    """Let the tower of a private copy return the features before the projection, by the identity in
    its place.
    """
    name = projection(clip)
    last = last_map(clip)
    if not isinstance(last, nn.Linear):
        eye = torch.eye(len(last))
        substitute(clip, name, lambda frozen: eye.to(frozen.device))
        return
    eye = torch.eye(last.in_features)
    substitute(clip, f"{name}.weight", lambda frozen: eye.to(frozen.device))
    if last.bias is not None:
        zeros = torch.zeros(last.in_features)
        substitute(clip, f"{name}.bias", lambda frozen: zeros.to(frozen.device))


class Projection(Head):
    """The projection, by the names of the official checkpoints of ProLIP.

    `vit_proj` is (width, joint); of a ResNet and of timm's towers, `linear.weight` is (joint,
    width), and `linear.bias`, if there is one, stays as it is.
    """

    logit_scale = SCALE
    start: Tensor

    def __init__(self, clip: CLIP, learns: bool = True):
        super().__init__()
        kind = nn.Parameter if learns else nn.Buffer
        last = last_map(clip)
        if isinstance(last, nn.Linear):
            self.linear: Any = nn.Module()
            self.linear.weight = kind(last.weight.detach().float().clone())
            bias = None if last.bias is None else last.bias.detach().float().clone()
            self.linear.register_buffer("bias", bias)
            self.width = last.in_features
        else:
            self.vit_proj = kind(last.detach().float().clone())
            self.width = len(self.vit_proj)
        if learns:
            self.remember()

    def remember(self) -> None:
        """Keep the start of the one parameter."""
        self.start = nn.Buffer(next(self.parameters()).detach().clone(), persistent=False)

    def squares(self) -> Tensor:
        """The squared change of what is learned, summed over all entries; in fp32, as fp16 would
        overflow.
        """
        return (next(self.parameters()) - self.start).float().square().sum()

    def project(self, x: Tensor) -> Tensor:
        """Features before the projection (n, width) -> (n, joint), not normalised."""
        if hasattr(self, "vit_proj"):
            return x.to(self.vit_proj.dtype) @ self.vit_proj
        weight = self.linear.weight
        return F.linear(x.to(weight.dtype), weight, self.linear.bias)

    def classify(self, image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
        unit = F.normalize(self.project(image), dim=-1)
        return SCALE * unit @ text.T.to(unit.dtype)

    def install(self, clip: CLIP) -> None:
        remove_projection(clip)


class UnprojectedCLIP(HeadCLIP):
    """A CLIP whose image features are those before the projection of the tower, if it has one."""


def bottleneck(width: int, hidden: int) -> nn.Sequential:
    """Two linear maps without bias on features (..., width), each with ReLU."""
    inner = nn.Linear(width, hidden, bias=False)
    outer = nn.Linear(hidden, width, bias=False)
    return nn.Sequential(inner, nn.ReLU(), outer, nn.ReLU())
