"""The layout of the text tower's tokens: a prefix that all rows share, and the packed tokens after it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, pairwise, takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary

from .schedule import TextPrompts

# Up to this many tokens attend together, under a mask: on a CPU 450 do so faster than row by row, and 900 slower. A GPU
# needs fewer launches for it.
AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Places:
    """Which of n tokens is at each of m places.

    Attributes:
        token: (m,) the token at each place.
        place: (m,) the places of token 0, then those of token 1, and so on.
        start: (n,) where each token's places begin in `place`.
    """

    token: Tensor
    place: Tensor
    start: Tensor

    @classmethod
    @torch.inference_mode(False)  # so that training can use it, too
    def of(cls, token: Tensor, tokens: int) -> "Places":
        place = token.argsort(stable=True)
        start = torch.searchsorted(token[place], torch.arange(tokens, device=token.device))
        return cls(token, place, start)

    def take(self, x: Tensor) -> Tensor:
        """(images, n, width) -> (images, m, width)."""
        return Taken.apply(x, self.token, self.place, self.start)


class Taken(torch.autograd.Function):
    """`x.index_select(1, token)`, whose gradient is one operation that always adds up in the same order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, place: Tensor, start: Tensor) -> Tensor:
        ctx.save_for_backward(place, start)
        return x.index_select(1, token)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        place, start = ctx.saved_tensors
        images, places, width = gradient.shape
        rows = gradient.transpose(0, 1).reshape(places, -1)  # (m, images * width)
        summed = F.embedding_bag(place, rows, start, mode="sum")
        return summed.view(-1, images, width).transpose(0, 1), None, None, None


def once(method: Callable[..., "Packing"]) -> Callable[..., "Packing"]:
    """Computed once for the same arguments."""

    def made(self: "Packing", *arguments: Any) -> "Packing":
        key = method.__name__, *arguments
        if key not in self._others:
            with torch.inference_mode(False):  # so that training can use it, too
                self._others[key] = method(self, *arguments)
        return self._others[key]

    return made


@dataclass(frozen=True, eq=False)
class Packing:
    """Which of N packed tokens stand where in C rows, which begin with the same P tokens.

    Attributes:
        prefix: P.
        packed_index: (N,) the first place of each packed token, an index into C * longest places.
        padded_index: (C, longest) the packed token at each of these places; after EOT the same EOT again.
        eot: (C,) the packed token that is EOT of each row.
        lengths: (C,) number of packed tokens of each row.
        before: (N, N) whether a token attends to another: to those before it in its rows, and to itself. None for more
            than `AT_ONCE` tokens.
        dtype: of the masks.
    """

    prefix: int
    packed_index: Tensor
    padded_index: Tensor
    eot: Tensor
    lengths: Tensor
    before: Tensor | None
    dtype: torch.dtype = torch.float32
    _others: dict[Any, "Packing"] = field(default_factory=dict, repr=False)  # made of it

    @classmethod
    def of_rows(cls, rows: list[list[int]], prefix: int, device: torch.device) -> "Packing":
        """From the packed tokens of each row; the numbers from 0 to N - 1 all occur."""
        longest = max(len(row) for row in rows)
        padded = [row + row[-1:] * (longest - len(row)) for row in rows]  # (C, longest)
        place_of: dict[int, int] = {}
        for place, token in enumerate(token for row in padded for token in row):
            place_of.setdefault(token, place)
        tokens = len(place_of)
        return cls(
            prefix=prefix,
            packed_index=torch.tensor([place_of[token] for token in range(tokens)], device=device),
            padded_index=torch.tensor(padded, device=device),
            eot=torch.tensor([row[-1] for row in rows], device=device),
            lengths=torch.tensor([len(row) for row in rows], device=device),
            before=ancestors(rows, tokens).to(device) if prefix + tokens <= AT_ONCE else None,
        )

    @once
    def after(self, prefix: int) -> "Packing":
        """The same rows after a prefix of another length; computed once."""
        together = prefix + len(self.packed_index) <= AT_ONCE
        return replace(self, prefix=prefix, before=self.before if together else None, _others={})

    @once
    def without_sharing(self, prefix: int, more: int) -> "Packing":
        """Rows after another prefix, each longer by `more` packed tokens, which share none; computed once."""
        token = count()
        rows = [[next(token) for _ in range(length + more)] for length in self.lengths.tolist()]
        return self.of_rows(rows, prefix, self.lengths.device)

    @once
    def of_type(self, dtype: torch.dtype) -> "Packing":
        """The same with masks of a type; computed once, before a compiled layer asks for it."""
        made = replace(self, dtype=dtype, _others={})
        _ = made.mask, made.eot_mask, made.to_eot, made.to_rows, made.to_tokens
        return made

    @cached_property
    def mask(self) -> Tensor | None:
        """(P + N, P + N), to be added to scores: 0 where a token attends to another, the prefix first, else -inf."""
        return None if self.before is None else additive(with_prefix(self.before, self.prefix), self.dtype)

    @cached_property
    def eot_mask(self) -> Tensor:
        """(C, P + N), the rows of `mask` for EOT; without `mask` (C, 1, 1, P + longest), for the tokens of its row."""
        if self.before is not None:
            return additive(with_prefix(self.before, self.prefix)[self.prefix + self.eot], self.dtype)
        position = torch.arange(self.prefix + self.longest, device=self.eot.device)
        return additive(position < self.prefix + self.lengths[:, None, None, None], self.dtype)

    @property
    def classes(self) -> int:
        return self.padded_index.shape[0]

    @property
    def longest(self) -> int:
        return self.padded_index.shape[1]

    @property
    def tokens(self) -> int:
        """P + N."""
        return self.prefix + len(self.packed_index)

    @cached_property
    def to_rows(self) -> Places:
        """The P + N tokens at C * (P + longest) places."""
        prefix = torch.arange(self.prefix, device=self.eot.device).expand(self.classes, -1)
        return Places.of(torch.cat([prefix, self.prefix + self.padded_index], 1).flatten(), self.tokens)

    @cached_property
    def to_tokens(self) -> Places:
        """One of these places for each token."""
        row, position = self.packed_index // self.longest, self.packed_index % self.longest
        length = self.prefix + self.longest
        places = [torch.arange(self.prefix, device=row.device), row * length + self.prefix + position]
        return Places.of(torch.cat(places), self.classes * length)

    @cached_property
    def to_eot(self) -> Places:
        """EOT of each row."""
        return Places.of(self.prefix + self.eot, self.tokens)

    def in_rows(self, x: Tensor) -> Tensor:
        """(images, P + N, width) -> (images * C, P + longest, width)."""
        return self.to_rows.take(x).view(-1, self.prefix + self.longest, x.shape[-1])

    def packed(self, x: Tensor, images: int) -> Tensor:
        """(images * C, P + longest, width) -> (images, P + N, width)."""
        return self.to_tokens.take(x.reshape(images, -1, x.shape[-1]))


def ancestors(rows: list[list[int]], tokens: int) -> Tensor:
    """Whether each of N tokens is another one or comes after it in a row, (N, N)."""
    found = torch.eye(tokens, dtype=torch.bool)
    for row in rows:
        for before, token in pairwise(row):
            found[token] |= found[before]
    return found


def with_prefix(mask: Tensor, prefix: int) -> Tensor:
    """The mask of packed tokens, (N, N), with the prefix that all of them attend to: (P + N, P + N)."""
    causal = mask.new_ones(prefix, prefix + len(mask)).tril()
    return torch.cat([causal, F.pad(mask, (prefix, 0), value=True)])


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers. Its rows begin at multiples of 16, else CUDA's kernels copy it in each layer."""
    width = mask.shape[-1]
    padded = F.pad(mask, (0, -width % 16))
    return torch.zeros(padded.shape, dtype=dtype, device=mask.device).masked_fill_(~padded, -torch.inf)[..., :width]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of C rows are computed: P in a prefix that all rows share, N packed after it.

    Attributes:
        packing: where the tokens are in the rows.
        row, position: (P + N,) a row, and the position in it, of each token, the prefix first.
        ids: (P + N,) the token ids there.
        slots: (n,) positions of the learned vectors in row 0.
        has_suffix_ctx: whether some of the packed tokens are learned vectors.
    """

    packing: Packing
    row: Tensor
    position: Tensor
    ids: Tensor
    slots: Tensor
    has_suffix_ctx: bool

    @property
    def length(self) -> int:
        """Positions of the longest row, up to EOT."""
        return self.packing.prefix + self.packing.longest


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


@torch.inference_mode(False)  # so that training can use it, too
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
    # P: the tokens that all rows begin with, without EOT: it is read, so each row needs its own.
    columns = zip(*(content[:-1] for content in contents), strict=False)
    prefix = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    suffixes = [content[prefix:] for content in contents]  # C lists
    nodes = suffix_trie(suffixes)  # C lists of the same lengths, numbers from 0 to N - 1

    packing = Packing.of_rows(nodes, prefix, prompts.ids.device)
    of_prefix = torch.arange(prefix, device=prompts.ids.device)
    row = torch.cat([torch.zeros_like(of_prefix), packing.packed_index // packing.longest])
    position = torch.cat([of_prefix, prefix + packing.packed_index % packing.longest])
    return Layout(
        packing=packing,
        row=row,
        position=position,
        ids=prompts.ids[row, position],
        slots=prompts.ctx_positions[0],
        has_suffix_ctx=any(item < 0 for suffix in suffixes for item in suffix),
    )


def row_contents(prompts: TextPrompts) -> list[list[int]]:
    """Each row up to EOT as token ids, with a negative number for each learned vector; equal numbers, equal input."""
    slots = prompts.ctx_positions  # (C, n)
    vectors = -1 - torch.arange(slots.numel(), dtype=prompts.ids.dtype, device=slots.device).view_as(slots)
    vectors = vectors if prompts.by_class else vectors[:1].expand_as(vectors)
    contents = prompts.ids.scatter(1, slots, vectors).tolist()  # (C, context_length)
    return [row[: eot + 1] for row, eot in zip(contents, prompts.ids.argmax(dim=-1).tolist(), strict=True)]


def suffix_trie(suffixes: list[list[int]]) -> list[list[int]]:
    """The node of each token in the trie of the suffixes.

    A node is a different beginning of a suffix. They are numbered from 0, the shortest first, then in order of their
    contents.
    """
    beginnings = [[tuple(suffix[:length]) for length in range(1, len(suffix) + 1)] for suffix in suffixes]
    ordered = sorted(
        {beginning for row in beginnings for beginning in row}, key=lambda beginning: (len(beginning), beginning)
    )
    number = {beginning: node for node, beginning in enumerate(ordered)}
    return [[number[beginning] for beginning in row] for row in beginnings]
