"""The layout of the text tower's tokens: a prefix that all rows share, and the packed tokens after it."""

from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary

from .schedule import TextPrompts

# Up to this many tokens attend at once, under a mask: on a CPU 450 do so faster than row by row, and 900 slower. CUDA's
# kernel adds up the gradient of up to 64 keys always in the same order.
AT_ONCE = {"cpu": 512, "cuda": 64}


@dataclass(frozen=True, eq=False)
class Packing:
    """Which of N packed tokens stand where in C rows, which begin with the same P tokens.

    Attributes:
        prefix: P.
        packed_index: (N,) the first place of each packed token, an index into C * longest places.
        padded_index: (C, longest) the packed token at each of these places; after EOT the same EOT again.
        eot: (C,) the packed token that is EOT of each row.
        lengths: (C,) number of packed tokens of each row.
        mask: (P + N, P + N) whether a token attends to another, the prefix first: to those before it in its rows, and
            to itself. None for more than `AT_ONCE` tokens.
    """

    prefix: int
    packed_index: Tensor
    padded_index: Tensor
    eot: Tensor
    lengths: Tensor
    mask: Tensor | None
    _others: dict[tuple, "Packing"] = field(default_factory=dict, repr=False)  # made of it

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
            mask=with_prefix(ancestors(rows, tokens).to(device), prefix) if at_once(prefix + tokens, device) else None,
        )

    @torch.inference_mode(False)
    def after(self, prefix: int) -> "Packing":
        """The same rows after a prefix of another length; computed once."""
        if prefix == self.prefix:
            return self
        if (prefix,) not in self._others:
            mask = None
            if self.mask is not None and at_once(prefix + len(self.packed_index), self.mask.device):
                mask = with_prefix(self.mask[self.prefix :, self.prefix :], prefix)
            self._others[prefix,] = replace(self, prefix=prefix, mask=mask, _others={})
        return self._others[prefix,]

    @torch.inference_mode(False)
    def without_sharing(self, prefix: int, more: int) -> "Packing":
        """Rows after another prefix, each longer by `more` packed tokens, which share none; computed once."""
        if (prefix, more) not in self._others:
            token = count()
            rows = [[next(token) for _ in range(length + more)] for length in self.lengths.tolist()]
            self._others[prefix, more] = self.of_rows(rows, prefix, self.lengths.device)
        return self._others[prefix, more]

    @property
    def classes(self) -> int:
        return self.padded_index.shape[0]

    @property
    def longest(self) -> int:
        return self.padded_index.shape[1]

    def pad(self, x: Tensor) -> Tensor:
        """(images, N, width) -> (images * C, longest, width)."""
        return select(x, self.padded_index.flatten()).view(-1, self.longest, x.shape[-1])

    def rows(self, prefix: Tensor, x: Tensor) -> Tensor:
        """(images, P, width) and (images, N, width) -> (images * C, P + longest, width)."""
        return torch.cat([prefix.repeat_interleave(self.classes, 0), self.pad(x)], 1)

    def pack(self, x: Tensor, images: int) -> Tensor:
        """(images * C, longest, width) -> (images, N, width)."""
        return x.reshape(images, -1, x.shape[-1]).index_select(1, self.packed_index)

    def causal_mask(self) -> Tensor:
        """Whether a position of a row attends to another, (longest, P + longest): to the prefix and up to itself."""
        position = torch.arange(self.longest, device=self.padded_index.device)
        return F.pad(position <= position[:, None], (self.prefix, 0), value=True)

    def eot_mask(self, images: int) -> Tensor:
        """The positions that EOT of each row attends to, (images * C, 1, 1, P + longest)."""
        position = torch.arange(self.longest, device=self.padded_index.device)
        mask = position < self.lengths[:, None, None, None]
        return F.pad(mask.repeat(images, 1, 1, 1), (self.prefix, 0), value=True)


def at_once(tokens: int, device: torch.device) -> bool:
    """Whether so few tokens attend at once."""
    return tokens <= AT_ONCE["cpu" if device.type == "cpu" else "cuda"]


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


def select(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of (images, tokens, width)."""
    # On CUDA the gradient of index_select is added up in any order, that of [] always in the same; here [] is slow.
    return x[:, index] if x.is_cuda else x.index_select(1, index)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of C rows are computed: P in a prefix that all rows share, N packed after it.

    Attributes:
        packing: where the tokens are in the rows.
        row, position: (N,) a row, and the position in it, of each packed token.
        has_suffix_ctx: whether some of the packed tokens are learned vectors.
    """

    packing: Packing
    row: Tensor
    position: Tensor
    has_suffix_ctx: bool

    @property
    def prefix(self) -> int:
        return self.packing.prefix

    @property
    def length(self) -> int:
        """Positions of the longest row, up to EOT."""
        return self.prefix + self.packing.longest


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
    prefix = common_prefix(contents)  # P
    suffixes = [content[prefix:] for content in contents]  # C lists
    nodes = suffix_trie(suffixes)  # C lists of the same lengths, numbers from 0 to N - 1

    packing = Packing.of_rows(nodes, prefix, prompts.ids.device)
    return Layout(
        packing=packing,
        row=packing.packed_index // packing.longest,
        position=prefix + packing.packed_index % packing.longest,
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
