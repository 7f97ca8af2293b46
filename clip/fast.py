"""The two towers under a prompt schedule, without the work that cannot change the result.

Same functions and results as `plain`. The text tower can skip so much because its attention is causal: the state of
a token at any layer depends only on the tokens up to it.

1. Only EOT is read, and it does not depend on the positions after it: they are left out.
2. Rows that begin with the same tokens have the same states of these tokens at every layer (by induction; deep prompts
   also enter all rows at the same positions). The prefix that all rows share runs through the tower once. So does a
   beginning that only some rows share, as in "Audi S4" and "Audi S5". Each token attends to the keys and values of its
   own beginning.
3. Every step except attention treats each token separately. So the tokens after the prefix are packed, without
   repetition or padding. They are padded to rows for attention only, where causality hides the padding.
4. Of the last layer only EOT is read (CLS in the image tower): it needs keys and values of all tokens, but queries,
   output and MLP of that token only.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary

from . import plain
from .backbone import is_vit
from .schedule import Schedule, TextPrompts, check_edits

# Bounds the memory for texts that differ by image, without gradients. Smaller on a CPU, so that the tokens fit into its
# cache: evaluating CoCoOp with the small CLIP is 1.5 times as fast.
TOKENS_PER_CHUNK = {"cpu": 1 << 10, "cuda": 1 << 15}


@dataclass(frozen=True)
class Encoder:
    """The two towers, layer by layer.

    Args:
        image_layer, text_layer: the functions of these names below, or compiled forms of them.
    """

    image_layer: Callable[[ResidualAttentionBlock, Tensor, bool], Tensor]
    text_layer: Callable[[ResidualAttentionBlock, Tensor, Tensor, "Layout", bool], tuple[Tensor, Tensor]]

    def encode_image(self, clip: CLIP, images: Tensor, schedule: Schedule = ()) -> Tensor:
        """Same as `plain.encode_image`."""
        visual = clip.visual
        if not is_vit(clip) or not is_standard(visual.transformer):
            return plain.encode_image(clip, images, schedule)
        blocks = visual.transformer.resblocks
        check_edits(schedule, 0, len(blocks))
        x = plain.embed_image(visual, images)  # (batch, 1 + patches, width)
        for layer, block in enumerate(blocks):
            if layer < len(schedule):
                x = plain.edit(x, schedule[layer], x.shape[1])
            if layer == 0:
                x = visual.ln_pre(x)
            x = self.image_layer(block, x, layer + 1 == len(blocks))
        return visual.ln_post(x[:, 0]) @ visual.proj

    def encode_text(self, clip: CLIP, prompts: TextPrompts) -> Tensor:
        """Same as `plain.encode_text`."""
        path = choose_path(clip, prompts)
        if path == "reference":
            return plain.encode_text(clip, prompts)
        if path == "chunked":
            return torch.cat([self.encode_text(clip, chunk) for chunk in image_chunks(prompts)])
        return self._encode_shared(clip, prompts)

    def _encode_shared(self, clip: CLIP, prompts: TextPrompts) -> Tensor:
        """One pass of the prefix that all classes share and of the packed tokens after it."""
        blocks, deep = clip.transformer.resblocks, prompts.deep
        check_edits(deep, prompts.n_ctx, len(blocks))
        layout = layout_of(prompts)
        prefix, suffix = embed(clip, prompts, layout)  # (images, P, width), (images, N, width)
        prompts_end = 1 + prompts.n_ctx
        for layer, block in enumerate(blocks):
            if 0 < layer < len(deep):
                prefix = plain.edit(prefix, deep[layer], prompts_end)
                prompts_end += deep[layer].added - deep[layer].remove
            arguments = block, prefix, suffix, layout, layer + 1 == len(blocks)
            if clip.transformer.grad_checkpointing and torch.is_grad_enabled():
                prefix, suffix = checkpoint(self.text_layer, *arguments, use_reentrant=False)
            else:
                prefix, suffix = self.text_layer(*arguments)
        x = plain.text_output(clip, suffix)  # the last layer returns EOT only: (images, C, joint width)
        return x if prompts.by_image else x[0]


def choose_path(clip: CLIP, prompts: TextPrompts) -> str:
    """How to encode texts: "reference" (by `plain`), "chunked" (a few images at a time) or "shared" (in one pass).

    Deep prompts take the shared path only if they enter a prefix that all classes share.
    """
    deep_by_class = any(edit.add is not None and edit.add.dim() == 3 for edit in prompts.deep)
    differs_by_class = prompts.by_class or deep_by_class or prompts.slots is not None
    if not is_standard(clip.transformer) or (prompts.deep and differs_by_class):
        return "reference"
    if prompts.by_image and not torch.is_grad_enabled() and len(image_chunks(prompts)) > 1:
        return "chunked"
    return "shared"


def image_chunks(prompts: TextPrompts) -> list[TextPrompts]:
    """Prompts with a context for each image, as parts of at most TOKENS_PER_CHUNK tokens (at least one image)."""
    limit = TOKENS_PER_CHUNK["cpu" if prompts.ids.device.type == "cpu" else "cuda"]
    size = max(1, limit // len(layout_of(prompts).position))
    contexts = [] if prompts.ctx is None else prompts.ctx.split(size)
    return [replace(prompts, ctx=ctx) for ctx in contexts]


def image_layer(block: ResidualAttentionBlock, x: Tensor, last: bool) -> Tensor:
    """One layer of the image tower: (batch, tokens, width) to the same, or to CLS only in the last layer."""
    queries_from = x[:, :1] if last else x
    return block_output(block, queries_from, attention(block, *qkv(block, x, queries_from)))


def text_layer(
    block: ResidualAttentionBlock, prefix: Tensor, suffix: Tensor, layout: "Layout", last: bool
) -> tuple[Tensor, Tensor]:
    """One layer of the text tower.

    Args:
        prefix: (images, P, width), which all classes share; deep prompts may have changed P.
        suffix: (images, N, width), the packed tokens after it.
        last: the layer's output is read at EOT only.

    Returns:
        The new prefix and suffix; in the last layer the unchanged prefix and (images, C, width), EOT of each class.
    """
    images, n_prefix = prefix.shape[:2]
    queries_from = suffix[:, layout.eot] if last else suffix
    prefix_q, prefix_k, prefix_v = qkv(block, prefix, prefix)
    suffix_q, suffix_k, suffix_v = qkv(block, suffix, queries_from)
    # Keys and values of each row: (images * C, P + longest, width)
    k = torch.cat([prefix_k.repeat_interleave(layout.classes, 0), layout.pad(suffix_k)], 1)
    v = torch.cat([prefix_v.repeat_interleave(layout.classes, 0), layout.pad(suffix_v)], 1)
    if last:
        eot_q = suffix_q.flatten(0, 1)[:, None]  # (images * C, 1, width)
        attended = attention(block, eot_q, k, v, layout.eot_mask(images, n_prefix))
        return prefix, block_output(block, queries_from, attended.view_as(queries_from))
    attended = attention(block, layout.pad(suffix_q), k, v, layout.causal_mask(n_prefix))
    suffix = block_output(block, suffix, layout.pack(attended, images))
    return block_output(block, prefix, attention(block, prefix_q, prefix_k, prefix_v, causal=True)), suffix


# The steps of one block


def is_standard(transformer: Transformer) -> bool:
    """Whether all blocks are CLIP's own, which the functions below take apart."""
    return transformer.batch_first and all(
        type(block) is ResidualAttentionBlock and isinstance(block.attn, nn.MultiheadAttention)
        for block in transformer.resblocks
    )


def qkv(block: ResidualAttentionBlock, x: Tensor, queries_from: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the tokens `queries_from`, keys and values of all tokens `x`."""
    weight, bias, width = block.attn.in_proj_weight, block.attn.in_proj_bias, x.shape[-1]
    if queries_from is x:
        q, k, v = F.linear(block.ln_1(x), weight, bias).chunk(3, dim=-1)
        return q, k, v
    k, v = F.linear(block.ln_1(x), weight[width:], bias[width:]).chunk(2, dim=-1)
    return F.linear(block.ln_1(queries_from), weight[:width], bias[:width]), k, v


def attention(
    block: ResidualAttentionBlock, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Multi-head attention of (batch, tokens, width), before the output projection."""
    q, k, v = (x.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal).transpose(1, 2).flatten(2)


def block_output(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """The block's output from its input and the result of attention."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    hidden = block.mlp.c_fc(block.ln_2(x))
    quick = isinstance(block.mlp.gelu, QuickGELU)
    hidden = QuickGELUFunction.apply(hidden) if quick else block.mlp.gelu(hidden)
    return x + block.ls_2(block.mlp.c_proj(hidden))


class QuickGELUFunction(torch.autograd.Function):
    """x sigmoid(1.702 x) = silu(z) / 1.702 with z = 1.702 x: its derivative is silu'(z), computed in one pass."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        z = 1.702 * x
        ctx.save_for_backward(z)
        return F.silu(z).div_(1.702)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(gradient, *ctx.saved_tensors)


# The layout of the tokens: a common prefix, and the packed tokens after it


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of C rows are computed: P in a prefix that all rows share, N packed after it.

    Attributes:
        prefix: P, learned vectors included.
        row, position: (N,) a row, and the position in it, of each packed token.
        packed_index: (N,) the same as an index into C * longest tokens: C rows of the longest part after the prefix.
        padded_index: (C, longest) the packed token at each of these places; after EOT the same EOT again.
        eot: (C,) the packed token that is EOT of each row.
        lengths: (C,) number of tokens of each row after the prefix.
        has_suffix_ctx: whether some of the packed tokens are learned vectors.
    """

    prefix: int
    row: Tensor
    position: Tensor
    packed_index: Tensor
    padded_index: Tensor
    eot: Tensor
    lengths: Tensor
    has_suffix_ctx: bool

    @property
    def classes(self) -> int:
        return self.padded_index.shape[0]

    @property
    def longest(self) -> int:
        return self.padded_index.shape[1]

    @property
    def length(self) -> int:
        """Positions of the longest row, up to EOT."""
        return self.prefix + self.longest

    def pad(self, x: Tensor) -> Tensor:
        """(images, N, width) -> (images * C, longest, width)."""
        index = self.padded_index.flatten()
        # On CUDA the gradient of index_select is added up in any order, that of [] always in the same; here [] is slow.
        padded = x[:, index] if x.is_cuda else x.index_select(1, index)
        return padded.view(-1, self.longest, x.shape[-1])

    def pack(self, x: Tensor, images: int) -> Tensor:
        """(images * C, longest, width) -> (images, N, width)."""
        return x.reshape(images, -1, x.shape[-1]).index_select(1, self.packed_index)

    def causal_mask(self, n_prefix: int) -> Tensor:
        """Whether a position of a row attends to another, (longest, P + longest): to the prefix and up to itself."""
        position = torch.arange(self.longest, device=self.padded_index.device)
        return F.pad(position <= position[:, None], (n_prefix, 0), value=True)

    def eot_mask(self, images: int, n_prefix: int) -> Tensor:
        """The positions that EOT of each row attends to, (images * C, 1, 1, P + longest)."""
        position = torch.arange(self.longest, device=self.padded_index.device)
        mask = position < self.lengths[:, None, None, None]
        return F.pad(mask.repeat(images, 1, 1, 1), (n_prefix, 0), value=True)


# Token ids -> (key, layout): see `layout_of`.
_layouts = WeakTensorKeyDictionary()


def layout_of(prompts: TextPrompts) -> Layout:
    """`token_layout` of these prompts, computed once for each text.

    The cache keeps the latest layout for each tensor of ids, and no tensor alive. A layout is valid for the same
    slots, as long as neither tensor is edited in place (autograd counts edits in `_version`).
    """
    ids, slots = prompts.ids, prompts.slots
    if ids.is_inference() or (slots is not None and slots.is_inference()):  # their edits are not counted
        return token_layout(prompts)
    of_slots = None if slots is None else (WeakIdRef(slots), slots._version)
    key = (ids._version, of_slots, prompts.n_ctx, prompts.by_class)
    cached_key, layout = _layouts.get(ids, (None, None))
    if layout is None or cached_key != key:
        layout = token_layout(prompts)
        _layouts[ids] = key, layout
    return layout


def token_layout(prompts: TextPrompts) -> Layout:
    """Where the tokens of each class are computed.

    For example "Audi S4", "Audi S5" and "BMW", after two context vectors v1 and v2 that all classes share:

        SOS v1 v2 Audi S4 EOT            0  2  5
        SOS v1 v2 Audi S5 EOT            0  3  6
        SOS v1 v2 BMW EOT                1  4  4
        -- P = 3 --                   padded_index

    The suffixes have N = 7 different beginnings, so many tokens are packed: Audi, BMW, S4, S5, EOT of BMW, of S4 and
    of S5, with packed_index = [0, 6, 1, 4, 7, 2, 5], eot = [5, 6, 4] and lengths = [3, 3, 2].
    """
    contents = row_contents(prompts)  # C lists
    prefix = common_prefix(contents)  # P
    suffixes = [content[prefix:] for content in contents]  # C lists
    nodes = suffix_trie(suffixes)  # C lists of the same lengths, numbers from 0 to N - 1

    longest = max(len(numbers) for numbers in nodes)
    padded = [numbers + numbers[-1:] * (longest - len(numbers)) for numbers in nodes]  # (C, longest)
    place_of: dict[int, int] = {}  # the first place of each node in `padded`
    for place, node in enumerate(node for numbers in padded for node in numbers):
        place_of.setdefault(node, place)
    packed_index = torch.tensor([place_of[node] for node in range(len(place_of))])  # (N,)

    device = prompts.ids.device
    return Layout(
        prefix=prefix,
        row=(packed_index // longest).to(device),
        position=(prefix + packed_index % longest).to(device),
        packed_index=packed_index.to(device),
        padded_index=torch.tensor(padded, device=device),
        eot=torch.tensor([numbers[-1] for numbers in nodes], device=device),
        lengths=torch.tensor([len(numbers) for numbers in nodes], device=device),
        has_suffix_ctx=any(item < 0 for suffix in suffixes for item in suffix),
    )


def row_contents(prompts: TextPrompts) -> list[list[int]]:
    """Each row up to EOT as token ids, with a negative number for each learned vector; equal numbers, equal input."""
    slots = prompts.ctx_positions  # (C, n)
    vectors = -1 - torch.arange(slots.numel(), dtype=prompts.ids.dtype, device=slots.device).view_as(slots)
    vectors = vectors if prompts.by_class else vectors[:1].expand_as(vectors)
    contents = prompts.ids.scatter(1, slots, vectors).tolist()  # (C, context_length)
    return [row[: eot + 1] for row, eot in zip(contents, prompts.ids.argmax(dim=-1).tolist(), strict=True)]


def common_prefix(contents: list[list[int]]) -> int:
    """The number of tokens that all rows begin with, without EOT: it is read, so each row needs its own."""
    shortest = min(len(content) for content in contents) - 1
    return next((i for i in range(shortest) if len({content[i] for content in contents}) > 1), shortest)


def suffix_trie(suffixes: list[list[int]]) -> list[list[int]]:
    """The node of each token in the trie of the suffixes.

    A node is a different beginning of a suffix. They are numbered from 0, the shortest first, then in order of their
    contents.
    """
    nodes: list[list[int]] = [[] for _ in suffixes]
    count = 0
    for depth in range(max(len(suffix) for suffix in suffixes)):
        # A beginning is its parent's node and one more token. The root has no number.
        beginnings = {
            row: (nodes[row][-1] if depth else -1, suffix[depth])
            for row, suffix in enumerate(suffixes)
            if depth < len(suffix)
        }
        number = {beginning: count + i for i, beginning in enumerate(sorted(set(beginnings.values())))}
        for row, beginning in beginnings.items():
            nodes[row].append(number[beginning])
        count += len(number)
    return nodes


def embed(clip: CLIP, prompts: TextPrompts, layout: Layout) -> tuple[Tensor, Tensor]:
    """The input of layer 0: the prefix (images, P, width) and the packed tokens (images, N, width)."""
    prompts = replace(prompts, ids=prompts.ids[:, : layout.length])
    n_prefix, row, position = layout.prefix, layout.row, layout.position
    embedding = clip.positional_embedding.to(clip.transformer.get_cast_dtype())  # (context_length, width)
    if layout.has_suffix_ctx:  # embed all rows, then take them apart: (images, C, length, width)
        x = torch.stack([plain.embed(clip, replace(prompts, ctx=ctx)) for ctx in prompts.contexts])
        return x[:, 0, :n_prefix] + embedding[:n_prefix], x[:, row, position] + embedding[position]
    # The prefix is that of row 0: (images, length, width)
    first = replace(prompts, ids=prompts.ids[:1], slots=None if prompts.slots is None else prompts.slots[:1])
    contexts = [ctx[:1] if ctx is not None and ctx.dim() == 3 else ctx for ctx in prompts.contexts]
    x = torch.cat([plain.embed(clip, replace(first, ctx=ctx)) for ctx in contexts])
    suffix = clip.token_embedding(prompts.ids[row, position]).to(embedding.dtype) + embedding[position]
    return x[:, :n_prefix] + embedding[:n_prefix], suffix.expand(len(x), -1, -1)


FAST = Encoder(image_layer, text_layer)
encode_image, encode_text = FAST.encode_image, FAST.encode_text


def compiled_towers(backend: str | Callable = "inductor") -> Encoder:
    """The fast towers with their layers compiled by torch.compile: the same results up to rounding.

    The layers of a tower are one function of different weights. So it is compiled once for all of them, and again only
    if the shapes or the tensors that need a gradient differ.
    """
    return Encoder(torch.compile(image_layer, backend=backend), torch.compile(text_layer, backend=backend))
