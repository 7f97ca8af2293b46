"""What every form of the two towers offers, and what an image tower returns."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from open_clip import CLIP
from torch import Tensor

from .errors import ClipError
from .schedule import Schedule, TextPrompts

# What can be read besides the image feature: "prompts", "patches", "local", or the input of a layer, by its number from
# 0 (from the end if it is negative).
Read = Collection[str | int]


class ImageOutput:
    """The output of an image tower. What was not read has no value: asking for it raises ClipError.

    Attributes:
        feature: (batch, joint width), not normalised.
        prompts: (batch, n, width), the last layer's output at the prompts, after `ln_post`.
        patches: (batch, rows * columns, width), the same at the patches.
        local: (batch, rows * columns, joint width), not normalised: features of single patches (`local_features`). A
            ResNet has these, too.
        inputs: (batch, tokens, width), the input of each layer that was read, by the number it was asked for: CLS, the
            patches row by row, the prompts.
    """

    prompts: Tensor
    patches: Tensor
    local: Tensor

    def __init__(
        self,
        feature: Tensor,
        prompts: Tensor | None = None,
        patches: Tensor | None = None,
        local: Tensor | None = None,
        inputs: Mapping[int, Tensor] | None = None,
    ):
        self.feature, self.inputs = feature, inputs or {}
        read = {"prompts": prompts, "patches": patches, "local": local}
        vars(self).update({name: tensor for name, tensor in read.items() if tensor is not None})

    def __getattr__(self, name: str) -> Any:  # of what is not there
        if name in ("prompts", "patches", "local"):
            raise ClipError(f"{name!r} was not read from the image tower", f'add it to `read`: ("{name}",)')
        raise AttributeError(name)


class Towers(Protocol):
    """One form of the two towers: see `plain` for their arguments and results."""

    def encode_image(self, clip: CLIP, images: Tensor, schedule: Schedule = (), read: Read = ()) -> ImageOutput: ...

    def encode_text(self, clip: CLIP, prompts: TextPrompts) -> Tensor: ...
