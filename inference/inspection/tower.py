"""The image tower layer by layer: the input and the attention of every layer, and what CLS consists
of in the end.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip import CLIP, Edit, Schedule, is_vit, load_backbone
from clip.anatomy import embed_image
from clip.blocks import is_standard, qkv, split_heads
from clip.plain import image_input

from ..classifier import PromptedClassifier

Shares = dict[str, Any]  # of one image, in its roll-out
CLIP_ALONE = "CLIP"  # in a comparison: the backbone as its weight file has it, without prompts


def layers_of(
    clip: CLIP, images: Tensor, schedule: Schedule
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Every layer of `clip.encode_image(clip, images, schedule)`; images are (batch, 3, H, W).

    Yields:
        its input (batch, T, width): CLS, patches, prompts; its attention (batch, heads, T, T),
            fp32, in which row i is
        what token i pays to each and adds up to 1; and for each of the prompts the layer that it
        was added before.
    """
    visual = clip.visual
    x = embed_image(visual, images)
    entries = entry_layers(schedule, len(visual.transformer.resblocks))
    for layer, block in enumerate(visual.transformer.resblocks):
        x = image_input(visual.ln_pre, x, schedule, layer)
        q, k, _ = (part.float() for part in split_heads(block, qkv(block, x)))
        yield x, (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1), entries[layer]
        x = block(x)


def shows_attention(clip: CLIP) -> bool:
    """Whether the image tower consists of CLIP's own transformer layers."""
    return is_vit(clip) and is_standard(clip.visual.transformer)


def entry_layers(schedule: Schedule, layers: int, present: int = 0) -> list[list[int]]:
    """For each layer and each prompt in its input: the layer that it was added before, in the order
    of the prompts.

    `present` prompts are there before the schedule begins, as text prompts are: they count as added
    before layer 0.
    """
    now = [0] * present
    found = []
    for layer in range(layers):
        edit = schedule[layer] if layer < len(schedule) else Edit()
        now = now[: len(now) - edit.remove] + [layer] * edit.added
        found.append(now)
    return found


def roll_out(clip: CLIP, images: Tensor, schedule: Schedule) -> list[Shares]:
    """Attention roll-out (Abnar and Zuidema, 2020): the product over layers of (attention, mean of
    its heads, + 1) / 2.

    Returns:
        for each of the images (batch, 3, H, W) what CLS, after the last layer, comes from:
        `patches` (rows, columns), `prompts`, all of them together, and `cls`, the class embedding.
        They add up to 1.
    """
    rows, columns = clip.visual.grid_size
    # (batch, T, CLS and patches)
    flow = torch.eye(1 + rows * columns, device=images.device).repeat(len(images), 1, 1)
    for layer, (_, weights, entered) in enumerate(layers_of(clip, images, schedule)):
        new = entered.count(layer)
        edit = schedule[layer] if layer < len(schedule) else Edit()
        # Empty, or zero, without a mix
        mixed = (1 - edit.weight) * flow[:, flow.shape[1] - edit.remove :]
        flow = F.pad(flow[:, : weights.shape[-1] - new], (0, 0, 0, new))
        flow[:, flow.shape[1] - mixed.shape[1] :] += mixed
        flow = (weights.mean(dim=1) @ flow + flow) / 2
    return [
        {
            "patches": cls[1:].view(rows, columns).tolist(),
            "prompts": 1 - cls.sum().item(),
            "cls": cls[0].item(),
        }
        for cls in flow[:, 0]
    ]


def compared_roll_outs(classifier: PromptedClassifier, images: Tensor) -> dict[str, list[Shares]]:
    """The roll-out of CLIP alone and of the method, unless the two are equal; {} without images or
    attention.

    The images are (batch, 3, H, W) by the classifier's transform. A method may have changed the
    modules of its image tower, so that CLIP alone is loaded for this.
    """
    if not len(images):
        return {}
    model = classifier.model_for()
    images = images.to(classifier.device)
    alone = backbone_alone(classifier.backbone, classifier.device)
    if not shows_attention(alone):
        return {}
    found = {CLIP_ALONE: roll_out(alone, images, ())}
    if shows_attention(model.clip):
        rolled = roll_out(model.clip, images, model.prompt_learner.vision())
        before, now = (
            [shares["patches"] for shares in each] for each in (found[CLIP_ALONE], rolled)
        )
        if not np.allclose(before, now, rtol=0.01, atol=0):  # fp16 rounds
            found[classifier.method] = rolled
    return found


@lru_cache(maxsize=4)
def backbone_alone(name: str, device: torch.device) -> CLIP:
    """A backbone that no method has changed."""
    return load_backbone(name).to(device)


def highlighted(image: Tensor, shares: Shares) -> Tensor:
    """An image (3, H, W), colours from 0 to 1, with each patch as bright as its share."""
    patches = torch.tensor(shares["patches"])
    light = F.interpolate((patches / patches.max())[None, None], image.shape[1:])[0]
    # A dark image as bright as others
    return image / image.max().clamp(min=0.2) * (0.15 + 0.85 * light)


def shares_text(shares: Shares) -> str:
    """The parts of CLS in words; the rest is CLS itself."""
    prompts = f", {100 * shares['prompts']:.0f}% on prompts" if shares["prompts"] > 0.005 else ""
    return f"{100 * np.sum(shares['patches']):.0f}% on the image{prompts}"
