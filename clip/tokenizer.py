"""CLIP's byte-pair tokeniser (open_clip's copy), with the padding and the errors of OpenAI's `tokenize`."""

from functools import cache

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from .errors import ClipError


@cache
def tokenizer() -> SimpleTokenizer:
    """The tokeniser, built once for each process: reading its vocabulary takes a second."""
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
    bpe, texts = tokenizer(), [texts] if isinstance(texts, str) else texts
    rows = torch.zeros(len(texts), context_length, dtype=torch.int)
    for row, text in zip(rows, texts, strict=True):
        ids = [bpe.sot_token_id, *bpe.encode(text), bpe.eot_token_id]
        if len(ids) > context_length:
            if not truncate:
                what = f"{text!r} has {len(ids)} tokens, the text tower has {context_length} positions"
                raise ClipError(what, "shorten it")
            ids = [*ids[: context_length - 1], bpe.eot_token_id]
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int)
    return rows
