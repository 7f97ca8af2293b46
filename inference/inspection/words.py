"""The words that learned text vectors are nearest to, as CoOp's `interpret_prompt.py` lists them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip import CLIP, TextPrompts
from clip.tokenizer import tokenizer

ROWS = 512  # vectors compared with the vocabulary at a time: 100 MB of distances


class Vectors(NamedTuple):
    """Vectors (n, width) that enter before a layer of the text tower, for one class or for all (None)."""

    layer: int
    class_name: str | None
    values: Tensor


def learned_vectors(prompts: TextPrompts, class_names: Sequence[str]) -> Iterator[Vectors]:
    """All vectors that are not words, layer by layer. Of those that differ by image, the mean."""
    ctx = prompts.ctx
    if ctx is not None and ctx.dim() == 4:  # (images, 1, n, width)
        ctx = ctx.mean(dim=(0, 1))
    for layer, values in [(0, ctx), *((layer, edit.add) for layer, edit in enumerate(prompts.deep))]:
        if values is not None and values.dim() == 3:
            yield from (Vectors(layer, name, own) for name, own in zip(class_names, values, strict=True))
        elif values is not None:
            yield Vectors(layer, None, values)


def nearest_words(clip: CLIP, prompts: TextPrompts, class_names: Sequence[str], k: int) -> list[dict[str, Any]]:
    """For every learned vector its place, its norm, and the k nearest token embeddings by Euclidean distance.

    A token that ends a word is written as the word, another one with a hyphen behind it.
    """
    vocabulary = clip.token_embedding.weight.float()
    rows = []
    for layer, class_name, values in learned_vectors(prompts, class_names):
        values = values.float()
        parts = [
            torch.cdist(part, vocabulary).topk(min(k, len(vocabulary)), largest=False) for part in values.split(ROWS)
        ]
        ids = torch.cat([part.indices for part in parts])
        exact = (vocabulary[ids] - values[:, None]).norm(dim=-1)  # cdist rounds: it multiplies matrices
        for number, norm in enumerate(values.norm(dim=-1).tolist()):
            near = sorted(zip(exact[number].tolist(), ids[number].tolist(), strict=True))
            nearest = [[word(token), distance] for distance, token in near]
            rows.append({"layer": layer, "class": class_name, "vector": number, "norm": norm, "nearest": nearest})
    return rows


def word(token: int) -> str:
    text = tokenizer().decode([token])
    return text.rstrip() if text.endswith(" ") else f"{text}-"
