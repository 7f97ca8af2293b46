"""The two towers under a prompt schedule, in their straightforward form: the reference for any faster form.

As in the published implementations, every class runs through all 77 positions of every layer.
"""

import torch
from open_clip import CLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from . import other
from .anatomy import embed_image, is_vit, reads_as_clip
from .blocks import local_features
from .schedule import Edit, Schedule, TextPrompts, check_edits, edit
from .towers import ImageOutput, Read, layers_read


def encode_image(clip: CLIP, images: Tensor, schedule: Schedule = (), read: Read = ()) -> ImageOutput:
    """The image tower under vision prompts, which follow the patch tokens.

    Args:
        clip: the frozen backbone.
        images: (batch, 3, H, W), normalised.
        schedule: entry 0 enters after the positional embedding, before `ln_pre` (or after it: `Edit.after_norm`).
        read: what to return besides the feature: `prompts`, `patches`, `local`, or numbers of layers, whose input is
            returned.

    Raises:
        ClipError: the schedule is invalid, a layer does not exist, or the image tower is not a vision transformer and
            there are prompts or something to read.
    """
    visual = clip.visual
    if not is_vit(clip):
        return other.encode_image(clip, images, schedule, read)
    blocks = visual.transformer.resblocks
    present, layers = check_edits(schedule, 0, len(blocks)), layers_read(read, len(blocks))
    x = embed_image(visual, images)  # (batch, 1 + patches, width)
    inputs: dict[int, Tensor] = {}
    for layer, block in enumerate(blocks):
        x = image_input(visual, x, schedule, layer)
        inputs |= dict.fromkeys(layers.get(layer, ()), x)
        local = local_features(clip, x) if "local" in read and layer + 1 == len(blocks) else None
        x = block(x)
    return image_output(visual, visual.ln_post(x), present, read, local, inputs)


def image_output(
    visual: VisionTransformer, x: Tensor, prompts: int, read: Read, local: Tensor | None, inputs: dict
) -> ImageOutput:
    """The output of an image tower.

    Args:
        x: of the last layer, after `ln_post`: CLS, the patches if they are read, and the prompts if these are.
        prompts: number of prompts in the last layer.
        read, local, inputs: see `encode_image`, `ImageOutput`.
    """
    return ImageOutput(
        feature=x[:, 0] @ visual.proj,
        prompts=x[:, x.shape[1] - prompts :] if "prompts" in read else None,
        patches=x[:, 1 : x.shape[1] - prompts] if "patches" in read else None,
        local=local,
        inputs=inputs,
    )


def encode_text(clip: CLIP, prompts: TextPrompts) -> Tensor:
    """Text features of classes under text prompts.

    Args:
        clip: the frozen backbone.
        prompts: rows of tokens, the learned vectors among them and the deep edits.

    Returns:
        (classes, joint width), not normalised; (images, classes, joint width) if `ctx` differs by image.

    Raises:
        ClipError: the schedule is invalid.
    """
    if not reads_as_clip(clip):
        return other.encode_text(clip, prompts)
    if prompts.by_image:
        return torch.stack([encode_text(clip, prompts.of_images(image)) for image in range(len(prompts.contexts))])

    x = embed(clip, prompts)  # (classes, positions, width)
    x = x + clip.positional_embedding.to(x.dtype)
    eot = prompts.ids.argmax(dim=-1)  # (classes,)
    deep, present = prompts.deep, prompts.n_ctx
    check_edits(deep, present, len(clip.transformer.resblocks))

    for layer, block in enumerate(clip.transformer.resblocks):
        if layer < len(deep):
            x = edit(x, deep[layer], 1 + present)
            grown = deep[layer].added - deep[layer].remove
            present, eot = present + grown, eot + grown
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        x = block(x, attn_mask=causal)
    return text_output(clip, x[torch.arange(len(x), device=x.device), eot])


def image_input(visual: VisionTransformer, x: Tensor, schedule: Schedule, layer: int) -> Tensor:
    """The input of a layer: the output of the one before, edited. That of layer 0 also goes through `ln_pre`."""
    change = schedule[layer] if layer < len(schedule) else Edit()
    if layer == 0 and change.after_norm:
        x = visual.ln_pre(x)
    x = edit(x, change, x.shape[1])
    return visual.ln_pre(x) if layer == 0 and not change.after_norm else x


def embed(clip: CLIP, prompts: TextPrompts, dtype: torch.dtype | None = None) -> Tensor:
    """Token embeddings with the learned vectors at their positions, (classes, positions, width).

    They are of the given type, by default that of the weights.
    """
    x = clip.token_embedding(prompts.ids).to(dtype or clip.transformer.get_cast_dtype())
    if prompts.ctx is None:
        return x
    ctx = prompts.ctx.to(x.dtype).expand(len(x), -1, -1)
    return x.scatter(1, prompts.ctx_positions.unsqueeze(-1).expand_as(ctx), ctx)


def text_output(clip: CLIP, eot: Tensor) -> Tensor:
    """Text features from the last layer's output at EOT: (..., width) -> (..., joint width)."""
    x = clip.ln_final(eot).to(clip.transformer.get_cast_dtype())
    return clip.text_projection(x) if isinstance(clip.text_projection, nn.Linear) else x @ clip.text_projection


class Plain:
    """The two towers as an object, since a module of Python cannot be in a model that is copied."""

    encode_image, encode_text = staticmethod(encode_image), staticmethod(encode_text)

    def __deepcopy__(self, memo: dict) -> "Plain":
        return self


PLAIN = Plain()
