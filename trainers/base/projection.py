"""A learned form of the last linear map of the image tower, on the features before it, which are
computed once.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, is_vit

from .copies import substitute
from .head import SCALE, Head, HeadCLIP


class Projection(Head):
    """The projection, by the names of the official checkpoints of ProLIP.

    `vit_proj` is (width, joint); of a ResNet, `linear.weight` is (joint, width), and `linear.bias`
    stays as it is.
    """

    logit_scale = SCALE
    start: Tensor

    def __init__(self, clip: CLIP, learns: bool = True):
        super().__init__()
        kind = nn.Parameter if learns else nn.Buffer
        if is_vit(clip):
            self.vit_proj = kind(clip.visual.proj.detach().float().clone())
            self.width = len(self.vit_proj)
        else:
            weight, bias = (
                tensor.detach().float().clone()
                for tensor in clip.visual.attnpool.c_proj.parameters()
            )
            self.linear: Any = nn.Module()
            self.linear.weight = kind(weight)
            self.linear.bias = nn.Buffer(bias)
            self.width = weight.shape[1]
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
        x = x.to(self.start.dtype)
        return (
            x @ self.vit_proj
            if hasattr(self, "vit_proj")
            else F.linear(x, self.linear.weight, self.linear.bias)
        )

    def classify(self, image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
        unit = F.normalize(self.project(image), dim=-1)
        return SCALE * unit @ text.T.to(unit.dtype)

    def install(self, clip: CLIP) -> None:
        """Let the tower return the features before the projection, by the identity in its place."""
        eye = torch.eye(self.width + 1, self.width)  # and zeros, for the bias
        if is_vit(clip):
            substitute(clip, "visual.proj", lambda frozen: eye[:-1].to(frozen.device))
        else:
            substitute(
                clip, "visual.attnpool.c_proj.weight", lambda frozen: eye[:-1].to(frozen.device)
            )
            substitute(
                clip, "visual.attnpool.c_proj.bias", lambda frozen: eye[-1].to(frozen.device)
            )


class LinearAdapter(Projection):
    """A linear map `linear2` behind the projection, which stays as it is."""

    def __init__(self, clip: CLIP):
        super().__init__(clip, learns=False)
        self.linear2 = nn.Linear(clip.visual.output_dim, clip.visual.output_dim, bias=False)
        nn.init.eye_(self.linear2.weight)
        self.remember()

    def project(self, x: Tensor) -> Tensor:
        return self.linear2(super().project(x))


class ProjectedCLIP(HeadCLIP):
    """A CLIP with a learned projection. The image features of the model are those before it."""

    prompt_learner: Projection

    def folded(self) -> dict[str, Tensor]:
        learner = self.prompt_learner
        state = self.frozen.state_dict()
        *rows, bias = learner.project(
            torch.eye(learner.width + 1, learner.width, device=learner.start.device)
        )
        weight = torch.stack(rows) - bias  # (width, joint)
        if is_vit(self.frozen):
            return state | {"visual.proj": weight}
        return state | {
            "visual.attnpool.c_proj.weight": weight.T,
            "visual.attnpool.c_proj.bias": bias,
        }
