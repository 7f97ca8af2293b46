"""The two towers under a prompt schedule, in their straightforward form.

Every class runs through all 77 positions and every layer in full, as in the published implementations: slow and
obvious, and so the reference that any faster form is held against.
"""

from dataclasses import replace

import torch
from open_clip import CLIP
from torch import Tensor, nn

from .backbone import is_vit
from .errors import ClipError
from .schedule import Edit, Schedule, TextPrompts, check_edits


def encode_image(clip: CLIP, images: Tensor, schedule: Schedule = ()) -> Tensor:
    """Image features under vision prompts, which stand behind the patch tokens.

    Args:
        clip: the frozen backbone.
        images: (batch, 3, H, W), normalised.
        schedule: entry 0 enters after the positional embedding and before `ln_pre`.

    Returns:
        (batch, joint width), not normalised.

    Raises:
        ClipError: prompts for an image tower that is no vision transformer, or a schedule that cannot be.
    """
    visual = clip.visual
    if not schedule and not is_vit(clip):
        return visual(images.to(next(visual.parameters()).dtype))
    if not is_vit(clip):
        raise ClipError("vision prompts need a vision transformer such as ViT-B/16; this backbone is none")
    check_edits(schedule, 0, len(visual.transformer.resblocks))
    x = embed_image(visual, images)
    for layer, block in enumerate(visual.transformer.resblocks):
        if layer < len(schedule):
            x = edit(x, schedule[layer], x.shape[1])
        if layer == 0:
            x = visual.ln_pre(x)
        x = block(x)
    return visual.ln_post(x[:, 0]) @ visual.proj


def encode_text(clip: CLIP, prompts: TextPrompts) -> Tensor:
    """Text features of classes under text prompts.

    Args:
        clip: the frozen backbone.
        prompts: rows of tokens, the learned vectors among them and the deep edits.

    Returns:
        (classes, joint width), not normalised; (images, classes, joint width) where `ctx` differs by image.

    Raises:
        ClipError: a schedule that cannot be.
    """
    if prompts.ctx is not None and prompts.ctx.dim() == 4:
        return torch.stack([encode_text(clip, replace(prompts, ctx=ctx)) for ctx in prompts.ctx])

    x = embed(clip, prompts)  # (classes, positions, width)
    x = x + clip.positional_embedding.to(x.dtype)
    eot = prompts.ids.argmax(dim=-1)
    deep, present = prompts.deep, 0 if prompts.ctx is None else prompts.ctx.shape[-2]
    check_edits(deep, present, len(clip.transformer.resblocks))

    for layer, block in enumerate(clip.transformer.resblocks):
        if 0 < layer < len(deep):
            x = edit(x, deep[layer], 1 + present)
            grown = deep[layer].added - deep[layer].remove
            present, eot = present + grown, eot + grown
        x = block(x, attn_mask=causal_mask(x))
    x = clip.ln_final(x[torch.arange(len(x), device=x.device), eot])
    return clip.text_projection(x) if isinstance(clip.text_projection, nn.Linear) else x @ clip.text_projection


def embed_image(visual: nn.Module, images: Tensor) -> Tensor:
    """CLS and patches with their positions, (batch, 1 + patches, width)."""
    x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    return x + visual.positional_embedding.to(x.dtype)


def embed(clip: CLIP, prompts: TextPrompts) -> Tensor:
    """Token embeddings with the learned vectors at their slots, (classes, positions, width)."""
    x = clip.token_embedding(prompts.ids).to(clip.transformer.get_cast_dtype())
    if prompts.ctx is None:
        return x
    ctx = prompts.ctx.to(x.dtype).expand(len(x), -1, -1)
    slots = prompts.slots
    if slots is None:
        slots = torch.arange(1, 1 + ctx.shape[1], device=x.device).expand(ctx.shape[:2])
    return x.scatter(1, slots.unsqueeze(-1).expand_as(ctx), ctx)


def edit(x: Tensor, change: Edit, end: int) -> Tensor:
    """Take `change.remove` tokens off before position `end` of (batch, positions, width), put the new ones there."""
    kept = x[:, : end - change.remove]
    new = [] if change.add is None else [change.add.to(x.dtype).expand(len(x), -1, -1)]
    return torch.cat([kept, *new, x[:, end:]], dim=1)


def causal_mask(x: Tensor) -> Tensor:
    """(positions, positions), 0 where a position may look and -inf behind it."""
    return nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
