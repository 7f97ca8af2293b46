"""The two towers with their work split over ranks: each computes a part of the images and of the classes.

Everything outside the towers (couplings of prompts, logits, losses, optimiser steps) is small, and every rank
computes all of it. So all ranks have the same loss and the same prompts at any time, and nothing of a method has to be
rewritten. Two functions connect both worlds. `AllGather` returns the outputs of all ranks; its gradient is the rank's
own part, since each rank has that of the complete loss. `AllReduceGradient` returns the learned vectors that enter a
tower; their gradient is the sum of those of all ranks, because each rank has used the vectors for its own part.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from open_clip import CLIP
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from .ranks import Ranks
from .schedule import Edit, Schedule, TextPrompts
from .towers import ImageOutput, Read, Towers


class SplitTowers:
    """Towers that all ranks call with the same arguments, in the same order, and that return the same on each.

    In tests each rank has images of its own. Then only texts that do not depend on images are split.

    Args:
        towers: compute each rank's part.
        ranks: of the run.
        model: shows whether it trains.
    """

    def __init__(self, towers: Towers, ranks: Ranks, model: nn.Module):
        self.towers, self.ranks, self.model = towers, ranks, model
        self._rows = WeakTensorKeyDictionary()  # token ids or slots -> their version, and the rank's rows of them

    def encode_image(self, clip: CLIP, images: Tensor, schedule: Schedule = (), read: Read = ()) -> ImageOutput:
        if not self.model.training or len(images) < self.ranks.count:
            return self.towers.encode_image(clip, images, schedule, read)
        own, sizes = self.ranks.shard(len(images)), self.ranks.shard_sizes(len(images))
        if images.requires_grad and torch.is_grad_enabled():
            (images,) = AllReduceGradient.apply(self.ranks, images)
        output = self.towers.encode_image(clip, images[own], of_sequences(self._summed(schedule), own), read)

        def gathered(part: Any) -> Any:
            return None if part is None else AllGather.apply(self.ranks, part, sizes)

        inputs = {layer: gathered(x) for layer, x in output.inputs.items()}
        names = ("feature", "prompts", "patches", "local")
        return ImageOutput(**{name: gathered(getattr(output, name)) for name in names}, inputs=inputs)

    def encode_text(self, clip: CLIP, prompts: TextPrompts) -> Tensor:
        images, classes = len(prompts.contexts) if prompts.by_image else 0, len(prompts.ids)
        by_image = images >= self.ranks.count
        if (images and not self.model.training) or not (by_image or classes >= self.ranks.count):
            return self.towers.encode_text(clip, prompts)
        ctx, *deep = self._summed([Edit(add=prompts.ctx), *prompts.deep])
        prompts = replace(prompts, ctx=ctx.add, deep=deep)
        if by_image:
            prompts, items = prompts.of_images(self.ranks.shard(images)), images
        else:
            of_own, items = prompts.of_classes(self.ranks.shard(classes)), classes
            slots = None if prompts.slots is None else self._own_rows(prompts.slots)
            prompts = replace(of_own, ids=self._own_rows(prompts.ids), slots=slots)
        features, dim = self.towers.encode_text(clip, prompts), 0 if by_image or not images else 1
        gathered = AllGather.apply(self.ranks, features.transpose(0, dim), self.ranks.shard_sizes(items))
        return gathered.transpose(0, dim)

    def _summed(self, schedule: Schedule) -> list[Edit]:
        """The edits, with vectors whose gradient is the sum of those of all ranks."""
        learned = [edit.add for edit in schedule if edit.add is not None and edit.add.requires_grad]
        if not (learned and torch.is_grad_enabled()):
            return list(schedule)
        summed = iter(AllReduceGradient.apply(self.ranks, *learned))
        return [
            replace(edit, add=next(summed)) if edit.add is not None and edit.add.requires_grad else edit
            for edit in schedule
        ]

    def _own_rows(self, x: Tensor) -> Tensor:
        """This rank's rows; the same tensor each time, since the fast towers keep what they know about it."""
        version, rows = self._rows.get(x, (None, None))
        if version != x._version:
            rows = x[self.ranks.shard(len(x))].clone()  # a view would keep x alive, its key here
            self._rows[x] = x._version, rows
        return rows


def of_sequences(schedule: Schedule, which: slice) -> list[Edit]:
    """The edits of some of the sequences, if they differ by sequence."""
    return [
        replace(edit, add=edit.add[which]) if edit.add is not None and edit.add.dim() == 3 else edit
        for edit in schedule
    ]


class AllGather(torch.autograd.Function):
    """This rank's rows -> those of all ranks."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.own = slice(sum(sizes[: ranks.rank]), sum(sizes[: ranks.rank + 1]))
        return ranks.gather(rows, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        return None, gradient[ctx.own], None


class AllReduceGradient(torch.autograd.Function):
    """Returns its tensors. Each rank uses its part of them."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        summed = ctx.ranks.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = summed.split([gradient.numel() for gradient in gradients])
        return None, *(
            part.view_as(gradient).to(gradient.dtype) for part, gradient in zip(parts, gradients, strict=True)
        )
