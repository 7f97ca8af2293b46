"""The image tower layer by layer, with what it does not return: the input and the attention of every layer."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from clip import CLIP, Edit, Schedule, is_vit
from clip.blocks import heads, is_standard, qkv
from clip.plain import embed_image, image_input
from common.errors import UsageError

CLS, PATCHES, NEW = "CLS", "patches", "new"  # groups of tokens, beside `carried N`


class LayerState(NamedTuple):
    """The input of a layer, and its attention.

    Attributes:
        tokens: (batch, T, width): CLS, patches, prompts.
        attention: (batch, heads, T, T), fp32; row i is what token i pays to each, and adds up to 1.
    """

    tokens: Tensor
    attention: Tensor


def layer_states(clip: CLIP, images: Tensor, schedule: Schedule) -> Iterator[LayerState]:
    """The state of every layer in `clip.encode_image(clip, images, schedule)`."""
    visual = clip.visual
    x = embed_image(visual, images)
    for layer, block in enumerate(visual.transformer.resblocks):
        x = image_input(visual, x, schedule, layer)
        yield LayerState(x, attention(block, x))
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


def token_groups(layer: int, prompts: Sequence[int], patches: int) -> dict[str, list[int]]:
    """The positions of the tokens in a layer's input by their kind: CLS, patches, prompts new here, and prompts carried
    over 1, 2, ... layers.

    Args:
        layer: its number.
        prompts: its entry of `origins`.
        patches: number of patches.
    """
    groups = {CLS: [0], PATCHES: list(range(1, 1 + patches))}
    for age in sorted({layer - origin for origin in prompts}):
        name = f"carried {age}" if age else NEW
        groups[name] = [1 + patches + n for n, origin in enumerate(prompts) if layer - origin == age]
    return groups


class RollOut(NamedTuple):
    """How much of CLS, after the last layer, comes from each input. For every image all shares add up to 1.

    Attributes:
        patches: (batch, rows, columns), the patches in the image.
        prompts: layer -> (batch,), all prompts that were added before it.
        cls: (batch,), the class embedding.
    """

    patches: Tensor
    prompts: dict[int, Tensor]
    cls: Tensor


def roll_out(clip: CLIP, images: Tensor, schedule: Schedule) -> RollOut:
    """Attention roll-out (Abnar and Zuidema, 2020): the product over layers of (attention, mean of its heads, + 1) / 2.

    Raises:
        UsageError: the image tower has no attention that can be computed.
    """
    if not shows_attention(clip):
        raise UsageError("the image tower of this backbone has other layers than CLIP's", "choose ViT-B/16, for one")
    origin: list[int] = []  # of the columns behind the patches
    flow = torch.empty(0)  # (batch, tokens, inputs)
    for layer, (tokens, weights) in enumerate(layer_states(clip, images, schedule)):
        edit = schedule[layer] if layer < len(schedule) else Edit()
        if layer == 0:
            flow = torch.eye(tokens.shape[1] - edit.added, device=tokens.device).repeat(len(tokens), 1, 1)
        flow = F.pad(flow[:, : flow.shape[1] - edit.remove], (0, edit.added, 0, edit.added))
        flow[:, flow.shape[1] - edit.added :, flow.shape[2] - edit.added :] = torch.eye(edit.added)
        origin += [layer] * edit.added
        flow = (weights.mean(dim=1) @ flow + flow) / 2
    cls, patches, prompts = flow[:, 0].cpu().split([1, flow.shape[2] - 1 - len(origin), len(origin)], dim=1)
    columns = torch.tensor(origin)
    by_layer = {layer: prompts[:, columns == layer].sum(dim=1) for layer in dict.fromkeys(origin)}
    return RollOut(patches.unflatten(1, tuple(clip.visual.grid_size)), by_layer, cls[:, 0])
