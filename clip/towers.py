"""What every form of the two towers offers, and what an image tower returns."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from open_clip import CLIP
from torch import Tensor

from .errors import ClipError
from .schedule import Schedule, TextPrompts

# What can be read besides the image feature: "prompts", "patches", "local", or the input of a
# layer, by its number from 0 (from the end if it is negative).
Read = Collection[str | int]


@dataclass(frozen=True)
class ImageOutput:
    """The output of an image tower.

    Attributes:
        feature: (batch, joint width), not normalised.
        prompts: (batch, n, width), the last layer's output at the prompts, after `ln_post`; None if
            it was not read.
        patches: (batch, rows * columns, width), the same at the patches.
        local: (batch, rows * columns, joint width), not normalised: features of single patches
            (`local_features`). A ResNet has these, too.
        inputs: (batch, tokens, width), the input of each layer that was read, by the number it was
            asked for: CLS, the patches row by row, the prompts.
    """

    feature: Tensor
    prompts: Tensor | None = None
    patches: Tensor | None = None
    local: Tensor | None = None
    inputs: Mapping[int, Tensor] = field(default_factory=dict)


class Towers(Protocol):
    """One form of the two towers: see `plain` for their arguments and results."""

    def encode_image(
        self, clip: CLIP, images: Tensor, schedule: Schedule = (), read: Read = ()
    ) -> ImageOutput: ...

    def encode_text(self, clip: CLIP, prompts: TextPrompts) -> Tensor: ...


def layers_read(read: Read, layers: int) -> dict[int, list[int]]:
    """The numbers in `read`, by the layer (from 0) that they name.

    Raises:
        ClipError: something cannot be read.
    """
    found: dict[int, list[int]] = {}
    for fault in read:
        if isinstance(fault, int) and -layers <= fault < layers:
            found.setdefault(fault % layers, []).append(fault)
        elif fault not in ("prompts", "patches", "local"):
            raise ClipError(
                f"{fault!r} cannot be read from an image tower of {layers} layers", "check `read`"
            )
    return found
