"""Several prompt schedules as one, so that one pass of a tower computes what each of them would give alone."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .schedule import Edit, Schedule, TextPrompts


def same_form(a: Schedule, b: Schedule) -> bool:
    """Whether two schedules remove and add the same numbers of prompts before the same layers."""
    return [shape(edit) for edit in a] == [shape(edit) for edit in b]


def shape(edit: Edit) -> tuple:
    own = edit.add is not None and edit.add.dim() > 2 and edit.add.shape[1:-2]
    return edit.remove, edit.added, edit.after_norm, edit.by_sequence, own


def stack_vision(schedules: Sequence[Schedule], sizes: Sequence[int]) -> Schedule:
    """One schedule for images that follow one another, `sizes[i]` of them under the i-th of `schedules`.

    The schedules have the same form (`same_form`).
    """
    stacked = []
    for edits in zip(*schedules, strict=True):
        adds = [edit.add.expand(size, -1, -1) for edit, size in zip(edits, sizes, strict=True) if edit.add is not None]
        stacked.append(replace(edits[0], add=torch.cat(adds) if adds else None))
    return stacked


def stack_texts(prompts: Sequence[TextPrompts]) -> tuple[TextPrompts, list[int]]:
    """The same classes under several prompts, as prompts that differ by image.

    The prompts have the same ids and slots, and their context and edits have the same form.

    Returns:
        the prompts, and how many images the features of each of the given ones are: (images, classes, joint width). It
        is 1 where they do not differ by image.
    """
    sizes = [len(each.contexts) for each in prompts]
    width = next(vectors.shape[-1] for each in prompts for vectors in learned(each))
    contexts = [each.ids.new_zeros(0, width) if each.ctx is None else each.ctx for each in prompts]
    deep = []
    for edits in zip(*(each.deep for each in prompts), strict=True):
        adds = [by_image(edit.add, size) for edit, size in zip(edits, sizes, strict=True) if edit.add is not None]
        deep.append(replace(edits[0], add=torch.cat(adds) if adds else None))
    ctx = torch.cat([by_image(ctx, size) for ctx, size in zip(contexts, sizes, strict=True)])
    return replace(prompts[0], ctx=ctx, deep=deep), sizes


def learned(prompts: TextPrompts) -> list[Tensor]:
    """Everything in the prompts that is not tokens."""
    return [vectors for vectors in (prompts.ctx, *(edit.add for edit in prompts.deep)) if vectors is not None]


def by_image(vectors: Tensor, images: int) -> Tensor:
    """(n, width), (classes, n, width) or (images, ...) -> (images, 1 or classes, n, width)."""
    missing = 4 - vectors.dim()
    return vectors[(None,) * missing].expand(images, -1, -1, -1)
