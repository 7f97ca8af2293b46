from typing import Protocol

from open_clip import CLIP
from torch import Tensor

from .schedule import Schedule, TextPrompts


class Towers(Protocol):
    """One form of the two towers: see `plain` for their arguments and results."""

    def encode_image(self, clip: CLIP, images: Tensor, schedule: Schedule = ()) -> Tensor: ...

    def encode_image_and_prompts(self, clip: CLIP, images: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]: ...

    def encode_text(self, clip: CLIP, prompts: TextPrompts) -> Tensor: ...
