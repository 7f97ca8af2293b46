"""The words that learned text vectors are nearest to, as CoOp's `interpret_prompt.py` lists them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from clip import CLIP, TextPrompts
from clip.tokenizer import tokenizer

ROWS = 256  # vectors compared with the vocabulary at a time: 100 MB of distances


def learned_vectors(prompts: TextPrompts, class_names: Sequence[str]) -> Iterator[tuple[int, str | None, Tensor]]:
    """All vectors that are not words: the layer they enter before, their class (None: all), and (n, width).

    Of vectors that differ by image, the mean.
    """
    ctx = prompts.ctx
    if ctx is not None and ctx.dim() == 4:  # (images, 1, n, width)
        ctx = ctx.mean(dim=(0, 1))
    for layer, values in [(0, ctx), *((layer, edit.add) for layer, edit in enumerate(prompts.deep))]:
        if values is not None and values.dim() == 3:
            for name, own in zip(class_names, values, strict=True):
                yield layer, name, own
        elif values is not None:
            yield layer, None, values


def nearest_words(clip: CLIP, prompts: TextPrompts, class_names: Sequence[str], k: int) -> list[dict[str, Any]]:
    """For every learned vector its place, its norm, and the k nearest token embeddings by Euclidean distance.

    A token that ends a word is written as the word, another one with a hyphen behind it.
    """
    vocabulary = clip.token_embedding.weight.double()
    rows = []
    for layer, class_name, vectors in learned_vectors(prompts, class_names):
        parts = [
            torch.cdist(part, vocabulary).topk(min(k, len(vocabulary)), largest=False)
            for part in vectors.double().split(ROWS)
        ]
        distances, ids = (torch.cat(column).tolist() for column in zip(*parts, strict=True))
        for number, norm in enumerate(vectors.double().norm(dim=-1).tolist()):
            nearest = [[word(token), near] for token, near in zip(ids[number], distances[number], strict=True)]
            rows.append({"layer": layer, "class": class_name, "vector": number, "norm": norm, "nearest": nearest})
    return rows


def word(token: int) -> str:
    text = tokenizer().decode([token])
    return text.rstrip() if text.endswith(" ") else f"{text}-"
