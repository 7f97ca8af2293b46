"""The two towers under a prompt schedule, in their straightforward form: the reference for any
faster form.

As in the published implementations, every class runs through all positions of every layer. This
form is that of every open_clip model. In the image tower prompts follow the patches. Pooling by
attention reads them as it reads all tokens. A mean is over the patches alone, as in the paper of
VPT (Jia et al., 2022, Sec. 4.3).
"""

from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from .anatomy import hugging_face, image_tower, is_vit, takes_prompts, text_blocks, word_table
from .blocks import local_features
from .errors import ClipError
from .schedule import Edit, Schedule, TextPrompts, check_edits, edit
from .tokenizer import tokenizer_of
from .towers import ImageOutput, Read, layers_read


def encode_image(
    clip: Any, images: Tensor, schedule: Schedule = (), read: Read = ()
) -> ImageOutput:
    """The image tower under vision prompts, which follow the patch tokens.

    Args:
        clip: the frozen backbone.
        images: (batch, 3, H, W), normalised.
        schedule: entry 0 enters after the positional embedding, before `norm` (or after it:
            `Edit.after_norm`).
        read: what to return besides the feature: `prompts`, `patches`, `local`, or numbers of
            layers, whose input is returned.

    Raises:
        ClipError: the schedule is invalid, a layer does not exist, or the image tower is not a
            vision transformer and there are prompts or something to read.
    """
    images = images.to(next(clip.visual.parameters()).dtype)
    if not takes_prompts(clip):
        if not schedule and set(read) <= {"local"}:
            return resnet_output(clip.visual, images) if read else ImageOutput(clip.visual(images))
        raise ClipError(
            "vision prompts need a vision transformer", "choose a backbone such as ViT-B/16"
        )
    tower = image_tower(clip)
    depth = len(tower.blocks)
    present = check_edits(schedule, 0, depth)
    layers = layers_read(read, depth)
    x = tower.embed(images)
    inputs = dict[int, Tensor]()
    local = None
    for layer in range(depth):
        x = image_input(tower.norm, x, schedule, layer)
        inputs |= dict.fromkeys(layers.get(layer, ()), x)
        if layer + 1 == depth and "local" in read:
            local = local_features(clip, x) if is_vit(clip) else patch_features(tower, x)
        x = tower.layer(layer, x)
    patches = x.shape[1] - present
    return ImageOutput(
        feature=tower.pool(x if tower.pools_prompts else x[:, :patches]),
        prompts=tower.normed(x[:, patches:]) if "prompts" in read else None,
        patches=tower.normed(x[:, tower.prefix : patches]) if "patches" in read else None,
        local=local,
        inputs=inputs,
    )


def image_input(norm: nn.Module, x: Tensor, schedule: Schedule, layer: int) -> Tensor:
    """The input of a layer: the output of the one before, edited. That of layer 0 also goes through
    `norm`.
    """
    change = schedule[layer] if layer < len(schedule) else Edit()
    if layer == 0 and change.after_norm:
        x = norm(x)
    x = edit(x, change, x.shape[1])
    return norm(x) if layer == 0 and not change.after_norm else x


def patch_features(tower: Any, x: Tensor) -> Tensor:
    """Features of single patches, (batch, patches, joint width), as `blocks.local_features`
    computes CLIP's.

    In the last layer each token reads itself alone, so that attention returns its value. Then the
    patch is pooled as if it were all tokens.
    """
    alone = torch.full(
        (x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype, device=x.device
    ).fill_diagonal_(0)
    rows, columns = tower.grid
    patches = tower.layer(len(tower.blocks) - 1, x, alone)[:, tower.prefix :][:, : rows * columns]
    copies = patches.flatten(0, 1)[:, None].expand(-1, tower.prefix + 1, -1)
    return tower.pool(copies).unflatten(0, patches.shape[:2])


def resnet_output(visual: Any, images: Tensor) -> ImageOutput:
    """The output of CLIP's ResNet with local features: the last map through the value path of its
    attention pooling.

    Raises:
        ClipError: another kind of image tower.
    """
    if not isinstance(visual, ModifiedResNet):
        raise ClipError(
            "local features need a vision transformer or CLIP's ResNet",
            "choose a backbone such as RN50",
        )
    x = visual.stem(images)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    pool = visual.attnpool
    return ImageOutput(pool(x), local=pool.c_proj(pool.v_proj(x.flatten(2).transpose(1, 2))))


def encode_text(clip: Any, prompts: TextPrompts) -> Tensor:
    """Text features of classes under text prompts, for texts of any tokeniser, causal or not, and
    read at any token.

    Args:
        clip: the frozen backbone.
        prompts: rows of tokens, the learned vectors among them and the deep edits.

    Returns:
        (classes, joint width), not normalised; (images, classes, joint width) if `ctx` differs by
        image.

    Raises:
        ClipError: the schedule is invalid.
    """
    if prompts.by_image:
        return torch.stack(
            [encode_text(clip, prompts.of_images(image)) for image in range(len(prompts.contexts))]
        )
    start = tokenizer_of(clip).start
    ids = prompts.ids
    if hugging_face(clip) is not None:
        return by_hugging_face(clip, embed(clip, prompts, None, start), prompts)
    # (classes, positions, width)
    x = embed(clip, prompts, clip.transformer.get_cast_dtype(), start)
    blocks = text_blocks(clip)
    present = prompts.n_ctx
    keys = None
    if getattr(clip, "cls_emb", None) is not None:
        x = torch.cat([x, clip.cls_emb.to(x.dtype).expand(len(x), 1, -1)], dim=1)
        # Which tokens are read: as in the published weights, whose mask is one position late for
        # all but the first.
        keys = torch.cat(
            [torch.ones_like(ids[:, :1], dtype=torch.bool), ids != clip.text_pad_id], dim=1
        )
    end = end_of_texts(clip, ids)
    x = x + clip.positional_embedding[: x.shape[1]].to(x.dtype)
    check_edits(prompts.deep, present, len(blocks))
    for layer, block in enumerate(blocks):
        if layer < len(prompts.deep):
            change = prompts.deep[layer]
            x = edit(x, change, start + present)
            if keys is not None:
                new = None if change.add is None else keys.new_ones(change.added, 1)
                keys = edit(keys[..., None], Edit(change.remove, new), start + present)[..., 0]
            grown = change.added - change.remove
            # The first token stays
            end = torch.where(end > 0, end + grown, end)
            present = present + grown
        x = block(x, attn_mask=mask_of(clip, x, keys, block))
    return text_output(clip, x[torch.arange(len(x), device=x.device), end])


def embed(
    clip: Any, prompts: TextPrompts, dtype: torch.dtype | None = None, start: int = 1
) -> Tensor:
    """Token embeddings with the learned vectors at their positions, (classes, positions, width).

    Args:
        dtype: of the result, by default that of the weights.
        start: the first position of the vectors, unless the prompts say where they are.
    """
    x = word_table(clip)(prompts.ids)
    x = x if dtype is None else x.to(dtype)
    if prompts.ctx is None:
        return x
    slots = prompts.ctx_positions + (start - 1 if prompts.slots is None else 0)
    ctx = prompts.ctx.to(x.dtype).expand(len(x), -1, -1)
    return x.scatter(1, slots.unsqueeze(-1).expand_as(ctx), ctx)


def end_of_texts(clip: Any, ids: Tensor) -> Tensor:
    """(classes,): the position of each row where its text is read."""
    last = torch.full_like(ids[:, 0], ids.shape[1] - 1).long()
    if getattr(clip, "cls_emb", None) is not None:
        return last + 1
    if clip.text_pool_type in ("first", "last"):
        return last if clip.text_pool_type == "last" else torch.zeros_like(last)
    return (ids if clip.text_pool_type == "argmax" else (ids == clip.text_eos_id).int()).argmax(
        dim=-1
    )


def mask_of(clip: Any, x: Tensor, keys: Tensor | None, block: Any) -> Tensor | None:
    """The mask that a layer adds to its scores: 0 where a token reads another, else -inf; None if
    all are read.
    """
    mask = None
    if clip.attn_mask is not None:
        mask = nn.Transformer.generate_square_subsequent_mask(
            x.shape[1], device=x.device, dtype=x.dtype
        )
    if keys is not None:
        hidden = torch.zeros(keys.shape, dtype=x.dtype, device=x.device).masked_fill_(
            ~keys, -torch.inf
        )
        # (classes, positions, positions)
        by_row = hidden[:, None] if mask is None else hidden[:, None] + mask
        mask = by_row.expand(-1, x.shape[1], -1).repeat_interleave(block.attn.num_heads, dim=0)
    return mask


def by_hugging_face(clip: Any, x: Tensor, prompts: TextPrompts) -> Tensor:
    """Text features of a tower of the library transformers, from its token embeddings.

    Raises:
        ClipError: there are prompts for its layers.
    """
    if any(change.remove or change.added for change in prompts.deep):
        text_blocks(clip)
    text = hugging_face(clip)
    mask = (prompts.ids != text.config.pad_token_id).long()
    return text.proj(text.pooler(text.transformer(inputs_embeds=x, attention_mask=mask), mask))


def text_output(clip: Any, x: Tensor) -> Tensor:
    """Text features from the last layer's output at the end of the texts: (..., width) -> (...,
    joint width).
    """
    x = clip.ln_final(x).to(clip.transformer.get_cast_dtype())
    projection = clip.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


class Plain:
    """The two towers as an object, since a module of Python cannot be in a model that is copied."""

    encode_image = staticmethod(encode_image)
    encode_text = staticmethod(encode_text)

    def __deepcopy__(self, memo: dict) -> "Plain":
        return self


PLAIN = Plain()
