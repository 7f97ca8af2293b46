"""The layout of the text tower's tokens: a prefix that all rows share, and the packed tokens after
it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary

from .schedule import TextPrompts

# Up to this many tokens attend together, under a mask: on a CPU 450 do so faster than row by row,
# and 900 slower. A GPU needs fewer launches for it.
AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class GatherIndex:
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
    def of(cls, token: Tensor, tokens: int) -> "GatherIndex":
        place = token.argsort(stable=True)
        start = torch.searchsorted(token[place], torch.arange(tokens, device=token.device))
        return cls(token, place, start)

    def take(self, x: Tensor) -> Tensor:
        """(images, n, width) -> (images, m, width)."""
        return IndexSelect.apply(x, self.token, self.place, self.start)


class IndexSelect(torch.autograd.Function):
    """`x.index_select(1, token)`, whose gradient is one operation that always adds up in the same
    order.
    """

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


def memoized(method: Callable[..., "Packing"]) -> Callable[..., "Packing"]:
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
    """Maps C rows (a shared prefix of P tokens, then different ends) to N packed tokens.

    Attributes:
        prefix: P.
        packed: N.
        padded_index: (C, longest) the packed token at each place of the rows after the prefix;
            after EOT the same EOT again.
        lengths: (C,) number of packed tokens of each row.
        dtype: of the masks.
    """

    prefix: int
    packed: int
    padded_index: Tensor
    lengths: Tensor
    dtype: torch.dtype = torch.float32
    _others: dict[Any, "Packing"] = field(default_factory=dict, repr=False)  # made of it

    @classmethod
    def of_rows(cls, rows: list[list[int]], prefix: int, device: torch.device) -> "Packing":
        """From the packed tokens of each row; the numbers from 0 to N - 1 all occur."""
        lengths = [len(row) for row in rows]
        padded = [row + row[-1:] * (max(lengths) - len(row)) for row in rows]
        packed = 1 + max(max(row) for row in rows)
        return cls(
            prefix,
            packed,
            torch.tensor(padded, device=device),
            torch.tensor(lengths, device=device),
        )

    @memoized
    def with_prefix(self, prefix: int) -> "Packing":
        """The same rows after a prefix of another length; computed once."""
        return replace(self, prefix=prefix, _others={})

    @memoized
    def without_sharing(self, prefix: int, more: int) -> "Packing":
        """Rows after another prefix, each longer by `more` packed tokens, which share none;
        computed once.
        """
        token = count()
        rows = [[next(token) for _ in range(length + more)] for length in self.lengths.tolist()]
        return self.of_rows(rows, prefix, self.lengths.device)

    @memoized
    def of_type(self, dtype: torch.dtype) -> "Packing":
        """The same with masks of a type; computed once, before a compiled layer asks for it."""
        made = replace(self, dtype=dtype, _others={})
        _ = made.mask, made.eot_mask, made.to_eot, made.to_rows, made.to_tokens
        return made

    @property
    def classes(self) -> int:
        return self.padded_index.shape[0]

    @property
    def length(self) -> int:
        """Places of the longest row, P + longest."""
        return self.prefix + self.padded_index.shape[1]

    @property
    def tokens(self) -> int:
        """P + N."""
        return self.prefix + self.packed

    @cached_property
    def rows(self) -> Tensor:
        """(C, length) the token at each place of the rows, the prefix first."""
        prefix = torch.arange(self.prefix, device=self.lengths.device).expand(self.classes, -1)
        return torch.cat([prefix, self.prefix + self.padded_index], dim=1)

    @cached_property
    def attended(self) -> Tensor | None:
        """(P + N, P + N) whether a token attends to another: to those before it in its rows, and to
        itself.

        None for more than `AT_ONCE` tokens.
        """
        if self.tokens > AT_ONCE:
            return None
        attending, attended = torch.tril_indices(self.length, self.length, device=self.rows.device)
        found = self.rows.new_zeros(self.tokens, self.tokens, dtype=torch.bool)
        found[self.rows[:, attending], self.rows[:, attended]] = True
        return found

    @cached_property
    def mask(self) -> Tensor | None:
        """`attended` as a mask to be added to scores."""
        return None if self.attended is None else additive(self.attended, self.dtype)

    @cached_property
    def eot_mask(self) -> Tensor:
        """(C, P + N), the rows of `mask` for EOT; without `mask` (C, 1, 1, length), for the places
        of its row.
        """
        if self.attended is not None:
            return additive(self.attended[self.rows[:, -1]], self.dtype)
        position = torch.arange(self.length, device=self.lengths.device)
        return additive(position < self.prefix + self.lengths[:, None, None, None], self.dtype)

    @cached_property
    def to_rows(self) -> GatherIndex:
        """The P + N tokens at C * length places."""
        return GatherIndex.of(self.rows.flatten(), self.tokens)

    @cached_property
    def to_tokens(self) -> GatherIndex:
        """The first of these places for each token."""
        # The sort in `GatherIndex.of` is stable: the places of a token are in order, and its first
        # one is at `start`.
        return GatherIndex.of(self.to_rows.place[self.to_rows.start], self.classes * self.length)

    @cached_property
    def to_eot(self) -> GatherIndex:
        """EOT of each row."""
        return GatherIndex.of(self.rows[:, -1], self.tokens)

    def in_rows(self, x: Tensor) -> Tensor:
        """(images, P + N, width) -> (images * C, length, width)."""
        return self.to_rows.take(x).view(-1, self.length, x.shape[-1])

    def from_rows(self, x: Tensor) -> Tensor:
        """(images * C, length, width) -> (images, P + N, width)."""
        return self.to_tokens.take(x.reshape(-1, self.classes * self.length, x.shape[-1]))


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers. Its rows begin at multiples of 16, else CUDA's kernels copy it in each
    layer.
    """
    width = mask.shape[-1]
    padded = F.pad(mask, (0, -width % 16))
    return torch.zeros(padded.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~padded, -torch.inf
    )[..., :width]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of C rows are computed: P in a prefix that all rows share, N packed after
    it.

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


# Token ids -> (key, layout): see `layout_of`.
_layouts = WeakTensorKeyDictionary()


def layout_of(prompts: TextPrompts) -> Layout:
    """`token_layout` of these prompts, computed once for each text.

    The cache keeps the latest layout for each tensor of ids, and no tensor alive. A layout is valid
    for the same slots, as long as neither tensor is edited in place (autograd counts edits in
    `_version`).
    """
    ids = prompts.ids
    slots = prompts.slots
    # Their edits are not counted
    if ids.is_inference() or (slots is not None and slots.is_inference()):
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

    For example "Audi S4", "Audi S5" and "BMW", after two context vectors v1 and v2 that all classes
    share:

        SOS v1 v2 Audi S4 EOT            0  2  5
        SOS v1 v2 Audi S5 EOT            0  3  6
        SOS v1 v2 BMW EOT                1  4  4
        -- P = 3 --                   padded_index

    The suffixes have N = 7 different beginnings, so many tokens are packed: Audi, BMW, S4, S5, EOT
    of BMW, of S4 and of S5, and lengths = [3, 3, 2].
    """
    contents = row_contents(prompts)  # C lists
    prefix = common_length(contents)  # P
    suffixes = [content[prefix:] for content in contents]  # C lists
    nodes = suffix_trie(suffixes)  # C lists of the same lengths, numbers from 0 to N - 1

    packing = Packing.of_rows(nodes, prefix, prompts.ids.device)
    first = packing.to_tokens.token
    row = first // packing.length
    position = first % packing.length
    return Layout(
        packing=packing,
        row=row,
        position=position,
        ids=prompts.ids[row, position],
        slots=prompts.ctx_positions[0],
        has_suffix_ctx=any(item < 0 for suffix in suffixes for item in suffix),
    )


def common_length(contents: list[list[int]]) -> int:
    """How many tokens all rows begin with, without EOT: it is read, so each row needs its own."""
    columns = zip(*(content[:-1] for content in contents), strict=False)
    return len(list(takewhile(lambda column: len(set(column)) == 1, columns)))


def row_contents(prompts: TextPrompts) -> list[list[int]]:
    """Each row up to EOT as token ids, with a negative number for each learned vector; equal
    numbers, equal input.
    """
    slots = prompts.ctx_positions  # (C, n)
    vectors = -1 - torch.arange(
        slots.numel(), dtype=prompts.ids.dtype, device=slots.device
    ).view_as(slots)
    vectors = vectors if prompts.by_class else vectors[:1].expand_as(vectors)
    contents = prompts.ids.scatter(1, slots, vectors).tolist()  # (C, context_length)
    return [
        row[: eot + 1]
        for row, eot in zip(contents, prompts.ids.argmax(dim=-1).tolist(), strict=True)
    ]


def suffix_trie(suffixes: list[list[int]]) -> list[list[int]]:
    """The node of each token in the trie of the suffixes.

    A node is a different beginning of a suffix. They are numbered from 0, the shortest first, then
    in order of their contents.
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
        number = {
            beginning: count + i for i, beginning in enumerate(sorted(set(beginnings.values())))
        }
        for row, beginning in beginnings.items():
            nodes[row].append(number[beginning])
        count += len(number)
    return nodes
