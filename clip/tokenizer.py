"""Texts as rows of token ids: CLIP's byte pairs (open_clip's copy) with OpenAI's `tokenize`, and
other tokenisers.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from .errors import ClipError

PLACEHOLDER = "X"  # a word at the start of a text that a context vector will replace


@cache
def byte_pairs() -> SimpleTokenizer:
    """CLIP's tokeniser, built once for each process: reading its vocabulary takes a second."""
    return SimpleTokenizer()


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Token ids of texts, framed by SOS and EOT and padded with zeros.

    Args:
        texts: one text or a list of them.
        context_length: positions in a row; 77 for every OpenAI model.
        truncate: cut longer texts (the last token is still EOT) instead of raising ClipError.

    Returns:
        (texts, context_length) int32, as in OpenAI's package.

    Raises:
        ClipError: a text has more tokens than fit; the message quotes it.
    """
    bpe = byte_pairs()
    texts = [texts] if isinstance(texts, str) else texts
    rows = torch.zeros(len(texts), context_length, dtype=torch.int)
    for row, text in zip(rows, texts, strict=True):
        ids = [bpe.sot_token_id, *bpe.encode(text), bpe.eot_token_id]
        if len(ids) > context_length:
            if not truncate:
                raise too_long(text, len(ids), context_length)
            ids = [*ids[: context_length - 1], bpe.eot_token_id]
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int)
    return rows


def too_long(text: str, tokens: int, positions: int) -> ClipError:
    return ClipError(
        f"{text!r} has {tokens} tokens, the text tower has {positions} positions", "shorten it"
    )


class Tokenizer:
    """The tokeniser of a text tower: CLIP's own.

    Attributes:
        start: how many tokens stand ahead of each text.
        name: of the tokeniser, for results and exports.
    """

    start = 1
    pad = 0  # the token after the end of a text
    name = "CLIP"

    def __init__(self, context_length: int):
        self.context_length = context_length

    def __call__(self, texts: list[str], truncate: bool = False) -> Tensor:
        """(texts, context length) int32; ClipError for a text that is too long, unless it may be
        cut.
        """
        return tokenize(texts, self.context_length, truncate)

    def length(self, text: str) -> int:
        """The number of tokens of a text, without those ahead of it and after it."""
        return int((self([text]) > 0).sum()) - 2

    def word(self, token: int) -> str:
        """A token as text, with a hyphen behind it if it does not end a word."""
        text = byte_pairs().decode([token])
        return text.rstrip() if text.endswith(" ") else f"{text}-"

    def __deepcopy__(self, memo: dict) -> "Tokenizer":
        return self


class OtherTokenizer(Tokenizer):
    """A tokeniser of another vocabulary. The tokens that it adds before and after a text are found
    by an example.

    Args:
        encode: (texts, length) -> (texts, length), the rows of open_clip's tokeniser, padded and
            cut to a length.
        decode: a token -> its text.
    """

    def __init__(
        self,
        encode: Callable[[list[str], int], Tensor],
        decode: Callable[[int], str],
        context_length: int,
        name: str,
    ):
        super().__init__(context_length)
        self.encode = encode
        self.decode = decode
        self.name = name
        empty, letter = (row.tolist() for row in encode(["", PLACEHOLDER], context_length))
        self.start = next(
            (i for i, pair in enumerate(zip(empty, letter, strict=True)) if len({*pair}) > 1), 0
        )
        self.ahead = empty[: self.start]
        self.placeholder = letter[self.start]
        self.pad = empty[-1]
        self.end = without_end(empty[self.start :], [self.pad])

    def __call__(self, texts: list[str], truncate: bool = False) -> Tensor:
        rows = []
        room = self.context_length - len(self.ahead) - max(1, len(self.end))
        for text, ids in zip(texts, self.contents(texts), strict=True):
            row = [*self.ahead, *(ids[:room] if truncate else ids), *self.end]
            # A text without an end has one token of padding after it, as these tokenisers cut long
            # texts.
            if len(row) + (not self.end) > self.context_length:
                raise too_long(text, len(row), self.context_length)
            rows.append(row + [self.pad] * (self.context_length - len(row)))
        return torch.tensor(rows, dtype=torch.int).reshape(len(rows), self.context_length)

    def word(self, token: int) -> str:
        return self.decode(token)

    def contents(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts without those ahead of them and after them; one for each place-holder
        at the start.
        """
        counts = [leading_placeholders(text) for text in texts]
        words = [
            text[count * (len(PLACEHOLDER) + 1) :]
            for text, count in zip(texts, counts, strict=True)
        ]
        rows = self.encode(words, 2 * self.context_length).tolist() if words else []
        ids = [without_end(without_end(row[self.start :], [self.pad]), self.end) for row in rows]
        return [[self.placeholder] * count + row for count, row in zip(counts, ids, strict=True)]

    def length(self, text: str) -> int:
        return len(self.contents([text])[0])


def leading_placeholders(text: str) -> int:
    """How many words X, each with a space after it, a text begins with."""
    words = text.split(" ")[:-1]
    return next((place for place, word in enumerate(words) if word != PLACEHOLDER), len(words))


def without_end(row: list[int], end: list[int]) -> list[int]:
    """A row without the tokens at its end: all copies of one token, or one copy of several."""
    if len(end) == 1:
        while row and row[-1] == end[0]:
            row = row[:-1]
    return row[: -len(end)] if len(end) > 1 and row[-len(end) :] == end else row


def tokenizer_of(clip: Any) -> Tokenizer:
    """The tokeniser of a backbone; CLIP's, unless it has another."""
    return getattr(clip, "tokenizer", None) or Tokenizer(clip.context_length)
