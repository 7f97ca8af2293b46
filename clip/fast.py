"""The two towers under a prompt schedule, without the work that cannot change the result.

Same functions and results as `plain`. The text tower can skip so much because its attention is
causal: the state of a token at any layer depends only on the tokens up to it.

1. Only EOT is read, and it does not depend on the positions after it: they are left out.
2. Rows that begin with the same tokens have the same states of these tokens at every layer (by
   induction; deep prompts also enter all rows at the same positions). The prefix that all rows
   share runs through the tower once. So does a beginning that only some rows share, as in "Audi S4"
   and "Audi S5". Each token attends to the keys and values of its own beginning. This ends at a
   layer where deep prompts differ by class or follow what differs: from there on, rows share only
   the tokens before these prompts.
3. Every step except attention treats each token separately. So the tokens after the prefix are
   packed, without repetition or padding. A few hundred of them attend together, under a mask. More
   of them are padded to rows for attention, where causality hides the padding.
4. Of the last layer only EOT is read (CLS in the image tower, and the prompts if they are asked
   for): it needs keys and values of all tokens, but queries, output and MLP of these tokens only.
5. An adapter in a block treats each token separately, too. From a block on that draws random
   numbers for each token of each row (dropout), rows share nothing. Their tokens stay packed. Only
   the adapter gets padded rows, so that it draws the same numbers as in the plain form.

A layer takes tensors apart by `split`, not by slices: the gradient of a split is one concatenation,
but that of each slice is a tensor of the size of the whole, filled with zeros.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import plain
from .anatomy import embed_image, is_vit, reads_as_clip
from .blocks import (
    attention,
    block_output,
    draws_after_input,
    is_standard,
    is_stochastic,
    local_features,
    qkv,
    split_heads,
)
from .frozen import matmul_dtype, normed
from .layout import Layout, Packing, layout_of
from .schedule import Edit, Schedule, TextPrompts, check_edits
from .towers import ImageOutput, Read, layers_read

# Bounds the memory for texts that differ by image, without gradients. Smaller on a CPU, so that the
# tokens fit into its cache: evaluating CoCoOp with the small CLIP is 1.5 times as fast.
TOKENS_PER_CHUNK = {"cpu": 1 << 10, "cuda": 1 << 15}


@dataclass(frozen=True)
class Encoder:
    """The two towers, layer by layer, which the functions of these names below compute, or compiled
    forms of them.
    """

    image_layer: Callable[[ResidualAttentionBlock, Tensor, int | None], Tensor]
    text_layer: Callable[[ResidualAttentionBlock, Tensor, Packing, bool], Tensor]
    text_layer_by_row: Callable[[ResidualAttentionBlock, Tensor, Packing, bool], Tensor]

    def encode_image(
        self, clip: CLIP, images: Tensor, schedule: Schedule = (), read: Read = ()
    ) -> ImageOutput:
        """Same as `plain.encode_image`."""
        if not is_vit(clip) or not takes_apart(clip.visual.transformer):
            return plain.encode_image(clip, images, schedule, read)
        visual = clip.visual
        blocks = clip.visual.transformer.resblocks
        present = check_edits(schedule, 0, len(blocks))
        layers = layers_read(read, len(blocks))
        x = embed_image(visual, images)  # (batch, 1 + patches, width)
        inputs: dict[int, Tensor] = {}
        if x.dtype == visual.conv1.weight.dtype:  # not under amp
            x = x.to(residual_dtype(x.dtype, visual.ln_post))
        everything = "patches" in read or draws_after_input(blocks[-1])
        read_last = None if everything else present if "prompts" in read else 0
        for layer, block in enumerate(blocks):
            last = layer + 1 == len(blocks)
            x = plain.image_input(visual.ln_pre, x, schedule, layer)
            inputs |= dict.fromkeys(layers.get(layer, ()), x)
            local = local_features(clip, x) if last and "local" in read else None
            x = self.image_layer(block, x, read_last if last else None)
        x = normed(visual.ln_post, x, matmul_dtype(x, visual.proj.dtype))
        patches = x.shape[1] - present
        return ImageOutput(
            feature=x[:, 0] @ visual.proj,
            prompts=x[:, patches:] if "prompts" in read else None,
            patches=x[:, 1:patches] if "patches" in read else None,
            local=local,
            inputs=inputs,
        )

    def encode_text(self, clip: CLIP, prompts: TextPrompts) -> Tensor:
        """Same as `plain.encode_text`."""
        if not reads_as_clip(clip) or not takes_apart(clip.transformer):
            return plain.encode_text(clip, prompts)
        if (
            prompts.by_image
            and not torch.is_grad_enabled()
            and len(chunks := image_chunks(prompts)) > 1
        ):
            return torch.cat([self.encode_text(clip, chunk) for chunk in chunks])
        blocks = clip.transformer.resblocks
        deep = prompts.deep
        check_edits(deep, prompts.n_ctx, len(blocks))
        layout = layout_of(prompts)
        x: Tensor = embed(clip, prompts, layout)  # (images, P + N, width)
        packing = layout.packing
        shared = True
        products = matmul_dtype(x, clip.transformer.get_cast_dtype())
        prompts_end = 1 + prompts.n_ctx
        for layer, block in enumerate(blocks):
            if layer < len(deep):
                x, packing = edit(x, packing, deep[layer], prompts_end)
                prompts_end += deep[layer].added - deep[layer].remove
            if is_stochastic(block) and shared:
                x, packing, shared = *whole_rows(x, packing), False
            typed = packing.of_type(products)
            text_layer = self.text_layer_by_row if typed.mask is None else self.text_layer
            arguments = block, x, typed, layer + 1 == len(blocks)
            if clip.transformer.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(text_layer, *arguments, use_reentrant=False)
            else:
                x = text_layer(*arguments)
        x = plain.text_output(clip, x)  # the last layer returns EOT only: (images, C, joint width)
        return x if prompts.by_image else x[0]


def residual_dtype(weights: torch.dtype, norm: nn.LayerNorm) -> torch.dtype:
    """The type of tokens between layers: that of the weights, but fp32 for bf16 with a LayerNorm in
    fp32.

    In bf16, what a layer adds to them would lose so many digits that some trainings fail.
    """
    return norm.weight.dtype if weights == torch.bfloat16 else weights


def takes_apart(transformer: Transformer) -> bool:
    """Whether the functions below can compute the blocks of a tower. If not, a warning says so."""
    standard = is_standard(transformer)
    if not standard:
        warn_of_plain_form()
    return standard


@cache  # Python's own filter forgets a warning whenever other code changes the filters
def warn_of_plain_form() -> None:
    blocks = "blocks that are not open_clip's ResidualAttentionBlock, or that have forward hooks,"
    warnings.warn(
        f"a tower has {blocks} and runs in its plain form, which takes longer", stacklevel=1
    )


def image_chunks(prompts: TextPrompts) -> list[TextPrompts]:
    """Prompts with a context for each image, as parts of at most TOKENS_PER_CHUNK tokens (at least
    one image).
    """
    limit = TOKENS_PER_CHUNK["cpu" if prompts.ids.device.type == "cpu" else "cuda"]
    size = max(1, limit // len(layout_of(prompts).position))
    return [
        prompts.of_images(slice(start, start + size))
        for start in range(0, len(prompts.contexts), size)
    ]


def image_layer(block: ResidualAttentionBlock, x: Tensor, read: int | None = None) -> Tensor:
    """One layer of the image tower: (batch, tokens, width) to the same or, with `read`, to CLS and
    the last `read`.
    """
    if read is None:
        q, k, v = split_heads(block, qkv(block, x))
        return block_output(block, x, attention(q, k, v))
    width = x.shape[1]

    def take(x: Tensor) -> Tensor:
        cls, _, prompts = x.split([1, width - 1 - read, read], dim=1)
        return torch.cat([cls, prompts], dim=1)

    x, queries, kv = reading(block, x, take)
    (q,), (k, v) = split_heads(block, queries), split_heads(block, kv)
    return block_output(block, x, attention(q, k, v))


def reading(
    block: ResidualAttentionBlock,
    x: Tensor,
    take: Callable[[Tensor], Tensor],
    packing: Packing | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """In the last layer: the tokens that are read (by `take`), their queries, and keys and values
    of all tokens.
    """
    taken = take(x)
    if not is_stochastic(block):
        kv = qkv(block, x, "kv")
        return taken, qkv(block, taken, "q"), kv
    # One call, so that dropout consumes as many random numbers as in the plain tower.
    q, k, v = qkv(block, x, packing=packing).chunk(3, dim=-1)
    return taken, take(q), torch.cat([k, v], dim=-1)


def text_layer(block: ResidualAttentionBlock, x: Tensor, packing: Packing, last: bool) -> Tensor:
    """One layer of the text tower, for a packing with a mask.

    Args:
        x: (images, P + N, width), the prefix that all classes share and the packed tokens after it.
        packing: of these tokens; deep prompts may have changed it.
        last: the layer's output is read at EOT only.

    Returns:
        The new x; in the last layer (images, C, width), EOT of each class.
    """
    if last and not draws_after_input(block):
        x, queries, kv = reading(block, x, packing.to_eot.take, packing)
        (q,), (k, v) = split_heads(block, queries), split_heads(block, kv)
        return block_output(block, x, attention(q, k, v, packing.eot_mask))
    q, k, v = split_heads(block, qkv(block, x, packing=packing))
    x = block_output(block, x, attention(q, k, v, packing.mask), packing)
    return packing.to_eot.take(x) if last else x


def text_layer_by_row(
    block: ResidualAttentionBlock, x: Tensor, packing: Packing, last: bool
) -> Tensor:
    """Same as `text_layer`, for any packing: attention pads its tokens to rows.

    It is a function of its own, as torch.compile limits how often it compiles each function.
    """
    images, _, width = x.shape
    if last and not draws_after_input(block):
        x, queries, kv = reading(block, x, packing.to_eot.take, packing)
        k, v = split_heads(block, packing.in_rows(kv))
        # (images * C, heads, 1, width of a head)
        (q,) = split_heads(block, queries.view(-1, 1, width))
        mask = packing.eot_mask if images == 1 else packing.eot_mask.repeat(images, 1, 1, 1)
        return block_output(block, x, attention(q, k, v, mask).view_as(x))
    q, k, v = split_heads(block, packing.in_rows(qkv(block, x, packing=packing)))
    x = block_output(block, x, packing.from_rows(attention(q, k, v, causal=True)), packing)
    return packing.to_eot.take(x) if last else x


def whole_rows(x: Tensor, packing: Packing) -> tuple[Tensor, Packing]:
    """Give each row tokens of its own, from a layer on that draws random numbers for each token of
    each row.
    """
    rows = packing.without_sharing(0, packing.prefix)
    return rows.from_rows(packing.in_rows(x)), rows


def edit(x: Tensor, packing: Packing, change: Edit, end: int) -> tuple[Tensor, Packing]:
    """Remove prompts before position `end` of every row, and add new ones there.

    Prompts that differ by class, or stand after the prefix, end the sharing: what follows them then
    differs from row to row, and becomes a part of the packed tokens.

    Returns:
        The new x (images, P' + N', width), and the packing of its tokens.
    """
    if not change.remove and not change.added:
        return x, packing
    images, tokens, n_prefix = *x.shape[:2], packing.prefix
    shared = end <= n_prefix and not change.by_sequence
    if change.add is not None and change.add.dim() > 2:
        rows = change.add.expand(images, 1 if shared else packing.classes, -1, -1)
        # (images, n, width) or (images * C, n, width)
        change = replace(change, add=rows.flatten(0, 1))
    if shared:
        return plain.edit(x, change, end), packing.with_prefix(
            n_prefix + change.added - change.remove
        )
    kept = min(n_prefix, end - change.remove)
    prefix, rest = x.split([kept, tokens - kept], dim=1)
    rows = plain.edit(packing.with_prefix(n_prefix - kept).in_rows(rest), change, end - kept)
    packing = packing.without_sharing(kept, n_prefix - kept + change.added - change.remove)
    return torch.cat([prefix, packing.with_prefix(0).from_rows(rows)], dim=1), packing


def embed(clip: CLIP, prompts: TextPrompts, layout: Layout) -> Tensor:
    """The input of layer 0, (images, P + N, width): the prefix and the packed tokens."""
    dtype = residual_dtype(clip.transformer.get_cast_dtype(), clip.ln_final)
    ctx = prompts.ctx
    positions = clip.positional_embedding.to(dtype)[layout.position]  # (P + N, width)
    if layout.has_suffix_ctx:  # embed all rows, then take them apart: (images, C, length, width)
        prompts = replace(prompts, ids=prompts.ids[:, : layout.packing.length])
        x = torch.stack(
            [plain.embed(clip, replace(prompts, ctx=ctx), dtype) for ctx in prompts.contexts]
        )
        return x[:, layout.row, layout.position] + positions
    x = clip.token_embedding(layout.ids)[None].to(dtype)
    if ctx is not None:  # the vectors of row 0 are those of all rows: (images, n, width)
        ctx = (ctx[:, 0] if ctx.dim() == 4 else ctx[:1] if ctx.dim() == 3 else ctx[None]).to(dtype)
        x = x.expand(len(ctx), -1, -1).index_copy(1, layout.slots, ctx)
    return x + positions


FAST = Encoder(image_layer, text_layer, text_layer_by_row)
encode_image = FAST.encode_image
encode_text = FAST.encode_text


def compiled_towers(backend: str | Callable = "inductor") -> Encoder:
    """The fast towers with their layers compiled by torch.compile: the same results up to rounding.

    The layers of a tower are one function of different weights. So it is compiled once for all of
    them, and again only if the shapes or the tensors that need a gradient differ.
    """
    layers = image_layer, text_layer, text_layer_by_row
    return Encoder(*(torch.compile(layer, backend=backend) for layer in layers))
