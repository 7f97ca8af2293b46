"""The image tower layer by layer, with what it does not return: the input and the attention of every layer."""

from collections.abc import Iterator
from typing import NamedTuple

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from clip import CLIP, Edit, Schedule, is_vit
from clip.blocks import heads, is_standard, qkv
from clip.plain import embed_image, image_input


class Layer(NamedTuple):
    """The input of a layer, and its attention.

    Attributes:
        tokens: (batch, T, width): CLS, patches, prompts.
        attention: (batch, heads, T, T), fp32; row i is what token i pays to each, and adds up to 1.
        entered: for each of the prompts the layer that it was added before.
    """

    tokens: Tensor
    attention: Tensor
    entered: list[int]


def layers_of(clip: CLIP, images: Tensor, schedule: Schedule) -> Iterator[Layer]:
    """Every layer of `clip.encode_image(clip, images, schedule)`; images are (batch, 3, H, W)."""
    visual = clip.visual
    x, entries = embed_image(visual, images), origins(schedule, len(visual.transformer.resblocks))
    for layer, block in enumerate(visual.transformer.resblocks):
        x = image_input(visual, x, schedule, layer)
        yield Layer(x, attention(block, x), entries[layer])
        x = block(x)


def attention(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of (batch, T, width): (batch, heads, T, T), fp32."""
    q, k, _ = (part.float() for part in heads(block, qkv(block, x)))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)


def shows_attention(clip: CLIP) -> bool:
    """Whether the image tower consists of CLIP's own transformer layers."""
    return is_vit(clip) and is_standard(clip.visual.transformer)


def origins(schedule: Schedule, layers: int, present: int = 0) -> list[list[int]]:
    """For each layer and each prompt in its input: the layer that it was added before, in the order of the prompts.

    Args:
        schedule: a valid one.
        layers: of the tower.
        present: prompts there before the schedule begins, as text prompts are; they count as added before layer 0.
    """
    now, found = [0] * present, []
    for layer in range(layers):
        edit = schedule[layer] if layer < len(schedule) else Edit()
        now = now[: len(now) - edit.remove] + [layer] * edit.added
        found.append(now)
    return found
