"""The two towers under a prompt schedule, without the work that cannot change the result.

Same functions as in `plain`, same results. Why the text tower may skip so much: its attention is causal, so a token's
state at any layer is a function of the tokens up to it.

1. Nothing behind EOT is read, and nothing up to EOT sees it: those positions are left out.
2. Rows that agree in their first tokens agree in the states of these tokens at every layer (by induction: deep
   prompts, too, enter all rows at the same places). What all rows begin with, the prefix, runs through the tower once;
   so does what only some begin with, as "Audi S4" and "Audi S5" do. Each token attends to the keys and values of its
   own beginning.
3. All but attention treats each token by itself. So the tokens behind the prefix stand packed, without repetition or
   padding, and are lined up in rows for attention only, where causality hides the padding behind them.
4. Of the last layer only EOT is read (CLS, in the image tower): it needs keys and values of all tokens, but queries,
   output and MLP of that one alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import plain
from .backbone import is_vit
from .schedule import Schedule, TextPrompts, check_edits

# Of texts that differ by image, where no gradient is asked for: bounds the memory. Less on a CPU, to stay in its cache:
# CoCoOp's tests with the small CLIP are half as fast again.
TOKENS_AT_A_TIME = {"cpu": 1 << 10, "cuda": 1 << 15}


def encode_image(clip: CLIP, images: Tensor, schedule: Schedule = (), through: Callable | None = None) -> Tensor:
    """As `plain.encode_image`; `through` stands in for `image_layer`."""
    through = through or image_layer
    visual = clip.visual
    if not is_vit(clip) or not is_standard(visual.transformer):
        return plain.encode_image(clip, images, schedule)
    blocks = visual.transformer.resblocks
    check_edits(schedule, 0, len(blocks))
    x = plain.embed_image(visual, images)  # (batch, tokens, width)
    for layer, block in enumerate(blocks):
        if layer < len(schedule):
            x = plain.edit(x, schedule[layer], x.shape[1])
        if layer == 0:
            x = visual.ln_pre(x)
        x = through(block, x, layer + 1 == len(blocks))
    return visual.ln_post(x[:, 0]) @ visual.proj


def encode_text(clip: CLIP, prompts: TextPrompts, through: Callable | None = None) -> Tensor:
    """As `plain.encode_text`; `through` stands in for `text_layer`."""
    through = through or text_layer
    ctx, deep, blocks = prompts.ctx, prompts.deep, clip.transformer.resblocks
    specific = ctx is not None and ctx.dim() == 3
    of_a_class = specific or any(edit.add is not None and edit.add.dim() == 3 for edit in deep)
    moved = of_a_class or prompts.slots is not None
    if not is_standard(clip.transformer) or (deep and moved):  # then deep prompts enter no common prefix
        return plain.encode_text(clip, prompts)
    n_ctx = 0 if ctx is None else ctx.shape[-2]
    check_edits(deep, n_ctx, len(blocks))
    rows = layout(prompts.ids, prompts.slots, n_ctx, specific)
    if ctx is not None and ctx.dim() == 4 and not torch.is_grad_enabled():
        images = max(1, TOKENS_AT_A_TIME["cpu" if ctx.device.type == "cpu" else "cuda"] // len(rows.token))
        if images < len(ctx):
            return torch.cat([encode_text(clip, replace(prompts, ctx=part), through) for part in ctx.split(images)])

    prefix, own = embed(clip, prompts, rows)  # (images, P, width), (images, N tokens of the classes' own, width)
    end = 1 + n_ctx  # of the prompts
    for layer, block in enumerate(blocks):
        if 0 < layer < len(deep):
            prefix = plain.edit(prefix, deep[layer], end)
            end += deep[layer].added - deep[layer].remove
        arguments = block, prefix, own, rows, layer + 1 == len(blocks)
        if clip.transformer.grad_checkpointing and torch.is_grad_enabled():
            prefix, own = checkpoint(through, *arguments, use_reentrant=False)
        else:
            prefix, own = through(*arguments)
    x = clip.ln_final(own)  # (images, classes, width)
    x = clip.text_projection(x) if isinstance(clip.text_projection, nn.Linear) else x @ clip.text_projection
    return x if ctx is not None and ctx.dim() == 4 else x[0]


def compiled_towers(backend: str = "inductor") -> SimpleNamespace:
    """`encode_image` and `encode_text` with their layers through torch.compile: the same but for rounding.

    A tower's layers are one function of different weights, so each is compiled for all of them at once, and anew only
    where the shapes or what needs a gradient differ.
    """
    image, text = (torch.compile(layer, backend=backend) for layer in (image_layer, text_layer))
    return SimpleNamespace(
        encode_image=partial(encode_image, through=image), encode_text=partial(encode_text, through=text)
    )


def image_layer(block: ResidualAttentionBlock, x: Tensor, last: bool) -> Tensor:
    """One layer of the image tower: (batch, tokens, width) to the same, of the last layer only CLS."""
    read = x[:, :1] if last else x
    return finish(block, read, attend(block, *projections(block, x, read)))


def text_layer(block: ResidualAttentionBlock, prefix: Tensor, own: Tensor, rows: "Layout", last: bool):
    """One layer of the text tower: prefix and own tokens to the same, of the last layer only EOT (images, C, width)."""
    read = own[:, rows.eot] if last else own
    prefix_q, *prefix_kv = projections(block, prefix, prefix)
    own_q, *own_kv = projections(block, own, read)
    # Each class's keys and values: the prefix's, then its own. (images * classes, P + longest, width)
    kv = zip(prefix_kv, own_kv, strict=True)
    k, v = (torch.cat([p.repeat_interleave(rows.classes, 0), rows.pad(o)], 1) for p, o in kv)
    if last:
        attended = attend(block, own_q.flatten(0, 1)[:, None], k, v, rows.mask(prefix, last=True))
        return prefix, finish(block, read, attended.view_as(read))
    attended = attend(block, rows.pad(own_q), k, v, rows.mask(prefix))
    own = finish(block, own, rows.pack(attended, len(own)))
    return finish(block, prefix, attend(block, prefix_q, *prefix_kv, causal=True)), own


# One block, taken apart


def is_standard(transformer: Transformer) -> bool:
    """Whether its blocks are CLIP's own, whose steps are known here."""
    return transformer.batch_first and all(
        type(block) is ResidualAttentionBlock and isinstance(block.attn, nn.MultiheadAttention)
        for block in transformer.resblocks
    )


def projections(block: ResidualAttentionBlock, x: Tensor, read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the tokens that will be read, keys and values of all."""
    weight, bias, width = block.attn.in_proj_weight, block.attn.in_proj_bias, x.shape[-1]
    if read is x:
        return F.linear(block.ln_1(x), weight, bias).chunk(3, dim=-1)
    k, v = F.linear(block.ln_1(x), weight[width:], bias[width:]).chunk(2, dim=-1)
    return F.linear(block.ln_1(read), weight[:width], bias[:width]), k, v


def attend(block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention of (batch, tokens, width) by heads, before the output projection."""
    q, k, v = (x.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal).transpose(1, 2).flatten(2)


def finish(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """The block's output from its input and what attention found."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    hidden = block.mlp.c_fc(block.ln_2(x))
    hidden = Gate.apply(hidden) if isinstance(block.mlp.gelu, QuickGELU) else block.mlp.gelu(hidden)
    return x + block.ls_2(block.mlp.c_proj(hidden))


class Gate(torch.autograd.Function):
    """QuickGELU, x sigmoid(1.702 x) = silu(z) / 1.702 with z = 1.702 x: its derivative is silu'(z), in one pass."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        z = 1.702 * x
        ctx.save_for_backward(z)
        return F.silu(z).div_(1.702)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(gradient, *ctx.saved_tensors)


# Rows of tokens as a common prefix and, packed, what they go on with


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of C rows go.

    Attributes:
        ids: (C, longest) rows cut behind the last EOT.
        prefix: P, the tokens that all rows have in common, learned vectors included.
        token: (N,) places in `ids` of the N tokens behind the prefix, those of a beginning that rows share once.
        place: (N,) the same tokens' places in C rows of the longest part behind the prefix.
        node: (C * longest,) which of the N tokens stands at each place of these rows; EOT again behind it.
        eot: (C,) which of the N tokens is each row's EOT.
        lengths: (C,) tokens of each row behind the prefix.
        inside: whether there are learned vectors among them.
    """

    ids: Tensor
    prefix: int
    token: Tensor
    place: Tensor
    node: Tensor
    eot: Tensor
    lengths: Tensor
    inside: bool

    @property
    def classes(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> int:
        return self.ids.shape[1] - self.prefix

    def pad(self, x: Tensor) -> Tensor:
        """(images, N, width) -> (images * C, longest, width)."""
        # On CUDA the gradient of index_select adds in any order, and that of [] always in the same; here [] is slow.
        rows = x[:, self.node] if x.is_cuda else x.index_select(1, self.node)
        return rows.view(-1, self.longest, x.shape[-1])

    def pack(self, x: Tensor, images: int) -> Tensor:
        """(images * C, longest, width) -> (images, N, width)."""
        return x.reshape(images, -1, x.shape[-1]).index_select(1, self.place)

    def mask(self, prefix: Tensor, last: bool = False) -> Tensor:
        """Which of prefix and own an own token may see: (longest, P + longest); for EOT (C, 1, 1, P + longest)."""
        own = torch.arange(self.longest, device=prefix.device)
        sees = own < self.lengths[:, None, None, None] if last else own <= own[:, None]
        if last:
            sees = sees.repeat(len(prefix), 1, 1, 1)
        return F.pad(sees, (prefix.shape[1], 0), value=True)


@lru_cache(maxsize=32)
def layout(ids: Tensor, slots: Tensor | None, n_ctx: int, specific: bool) -> Layout:
    """The layout of these rows; tensors are told apart by identity, so each text is laid out once."""
    eot = ids.argmax(dim=-1)
    ids = ids[:, : int(eot.max()) + 1]
    # What stands at each place, as a number: a token, or which learned vector.
    content = ids.clone()
    if slots is None:
        slots = torch.arange(1, 1 + n_ctx, device=ids.device).expand(len(ids), -1)
    vectors = -1 - torch.arange(slots.numel(), dtype=ids.dtype, device=ids.device).view_as(slots)
    content.scatter_(1, slots, vectors if specific else vectors[:1].expand_as(vectors))
    differs = (content != content[:1]).any(dim=0).nonzero()
    prefix = int(torch.cat([differs.flatten(), eot]).min())  # at least EOT is a row's own
    own = (torch.arange(ids.shape[1], device=ids.device) <= eot[:, None])[:, prefix:]  # (C, longest)
    lengths = eot + 1 - prefix
    # A token's beginning, as a number: the same for rows that agree up to this place.
    paths = [torch.zeros_like(eot)]
    for column in content[:, prefix:].T:
        paths.append(torch.unique(torch.stack([paths[-1], column]), dim=1, return_inverse=True)[1])
    paths = torch.stack(paths[1:], 1) + len(ids) * torch.arange(own.shape[1], device=ids.device)
    tokens, of = torch.unique(paths[own], return_inverse=True)
    places = own.flatten().nonzero().flatten()
    place = places.new_empty(len(tokens)).scatter_reduce(0, of, places, "amin", include_self=False)
    eot = of[lengths.cumsum(0) - 1]
    node = eot.repeat_interleave(own.shape[1]).index_copy(0, places, of)
    return Layout(
        ids=ids,
        prefix=prefix,
        token=place // own.shape[1] * ids.shape[1] + prefix + place % own.shape[1],
        place=place,
        node=node,
        eot=eot,
        lengths=lengths,
        inside=bool((slots >= prefix).any()),
    )


def embed(clip: CLIP, prompts: TextPrompts, rows: Layout) -> tuple[Tensor, Tensor]:
    """What layer 0 gets: the prefix (images, P, width) and the own tokens (images, N, width)."""
    ctx, slots = prompts.ctx, prompts.slots
    images = ctx if ctx is not None and ctx.dim() == 4 else [ctx]
    position = clip.positional_embedding.to(clip.transformer.get_cast_dtype())
    token = position[rows.token % rows.ids.shape[1]]
    if rows.inside:  # embed all rows, then take them apart
        x = torch.stack([plain.embed(clip, replace(prompts, ids=rows.ids, ctx=one)) for one in images])
        return x[:, 0, : rows.prefix] + position[: rows.prefix], x.flatten(1, 2)[:, rows.token] + token
    first = replace(prompts, ids=rows.ids[:1], slots=None if slots is None else slots[:1])
    images = [one[:1] if one is not None and one.dim() == 3 else one for one in images]  # of a class's own: none
    x = torch.cat([plain.embed(clip, replace(first, ctx=one)) for one in images])
    own = clip.token_embedding(rows.ids.flatten()[rows.token]).to(token.dtype) + token
    return x[:, : rows.prefix] + position[: rows.prefix], own.expand(len(x), -1, -1)
