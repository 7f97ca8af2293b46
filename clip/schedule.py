"""The prompt schedule: which vectors are removed and added before each layer of a tower.

Three operations describe every prompt-learning method on CLIP (Huang et al., 2025, Sec. IV, Table
I): *remove* takes prompts off the end of the previous layer's output, *add* appends new ones to the
layer's input, and *carry* passes on all prompts that were not removed. Deep prompting removes all
and adds as many; shallow prompting only ever adds before layer 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import ClipError


@dataclass(frozen=True)
class Edit:
    """How the prompts change before one layer.

    Args:
        remove: number of prompts to take off the end of those present.
        add: vectors to append then: (n, width), or (batch, n, width) for each sequence its own; in
            the text tower also (images, 1, n, width) or (images, classes, n, width); None adds
            nothing.
        after_norm: in layer 0 of the image tower, whether the vectors enter after `ln_pre` rather
            than before it.
        weight: of the vectors in a mix with the prompts that they replace, as many; at 1 nothing is
            left of these.
    """

    remove: int = 0
    add: Tensor | None = None
    after_norm: bool = False
    weight: float = 1.0

    @property
    def added(self) -> int:
        return 0 if self.add is None else self.add.shape[-2]

    @property
    def by_sequence(self) -> bool:
        """Whether each sequence (a class, in the text tower) gets vectors of its own."""
        return by_row(self.add)


def by_row(vectors: Tensor | None) -> bool:
    """Whether vectors (n, width), (rows, n, width) or (images, 1 or rows, n, width) differ by
    row.
    """
    return vectors is not None and (
        vectors.dim() == 3 or (vectors.dim() == 4 and vectors.shape[1] > 1)
    )


# Entry l is applied before layer l; layers beyond the last entry carry all prompts. Empty entries
# at the start let the first prompts enter at a later layer.
Schedule = Sequence[Edit]


@dataclass(frozen=True)
class TextPrompts:
    """The input of the text tower: a row of tokens for each class, with learned vectors at some
    positions.

    Args:
        ids: (classes, context_length) token ids; those at `slots` are placeholders.
        ctx: learned vectors, (n, width) for all classes, (classes, n, width) for each its own, or
            (images, 1, n, width) or (images, classes, n, width) for each image its own; None for
            plain text.
        slots: (classes, n) positions of the learned vectors; None means 1..n, directly after SOS.
        deep: edits of the prompts at positions 1..n; with n = 0 the first ones enter directly after
            SOS, and EOT moves. Vectors added here get no positional embedding, unlike `ctx`, also
            before layer 0. They may differ by image if `ctx` does, which may have n = 0 for that.
    """

    ids: Tensor
    ctx: Tensor | None = None
    slots: Tensor | None = None
    deep: Schedule = ()

    @property
    def n_ctx(self) -> int:
        """Learned vectors in each row."""
        return 0 if self.ctx is None else self.ctx.shape[-2]

    @property
    def by_class(self) -> bool:
        return by_row(self.ctx)

    @property
    def by_image(self) -> bool:
        return self.ctx is not None and self.ctx.dim() == 4

    @property
    def contexts(self) -> list[Tensor | None]:
        """`ctx` of each image; one entry if it is the same for all images."""
        return list(self.ctx) if self.ctx is not None and self.by_image else [self.ctx]

    def of_images(self, which: int | slice) -> "TextPrompts":
        """The prompts of some of the images, or those of one, if they differ by image."""
        assert self.ctx is not None
        deep = [
            replace(edit, add=edit.add[which])
            if edit.add is not None and edit.add.dim() == 4
            else edit
            for edit in self.deep
        ]
        return replace(self, ctx=self.ctx[which], deep=deep)

    @property
    def ctx_positions(self) -> Tensor:
        """(classes, n) positions of the learned vectors."""
        if self.slots is not None:
            return self.slots
        return torch.arange(1, 1 + self.n_ctx, device=self.ids.device).expand(len(self.ids), -1)


def prompt_lengths(
    adds: Sequence[int], removes: Sequence[int], layers: int, present: int = 0
) -> list[int]:
    """The number of prompts in each layer's input.

    Args:
        adds, removes: how many are added and removed before each layer; layers beyond the last
            entry carry all.
        layers: the tower's depth.
        present: the number before any of these changes.

    Raises:
        ClipError: more entries than layers, or more removed than present; the message names the
            layer.
    """
    if len(adds) > layers:
        raise ClipError(
            f"prompts for {len(adds)} layers, but the tower has {layers}", "lower the prompt depth"
        )
    lengths = []
    for layer in range(layers):
        add, remove = (counts[layer] if layer < len(counts) else 0 for counts in (adds, removes))
        if remove > present:
            raise ClipError(
                f"cannot remove {remove} prompts before layer {layer}, which has {present}",
                "remove fewer, add more",
            )
        present += add - remove
        lengths.append(present)
    return lengths


def check_edits(schedule: Schedule, present: int, layers: int) -> int:
    """Check a schedule for a tower of `layers` layers whose input has `present` prompts.

    Returns:
        the number of prompts in the last layer.

    Raises:
        ClipError: as for `prompt_lengths`, or a mix of unequal numbers of prompts.
    """
    for layer, edit in enumerate(schedule):
        if edit.weight != 1 and edit.added != edit.remove:
            fault = (
                f"the mix before layer {layer} removes {edit.remove} prompts and adds {edit.added}"
            )
            raise ClipError(fault, "replace as many prompts as are added")
    return prompt_lengths(
        [edit.added for edit in schedule], [edit.remove for edit in schedule], layers, present
    )[-1]


def edit(x: Tensor, change: Edit, end: int) -> Tensor:
    """Remove `change.remove` tokens before position `end` of (batch, positions, width) and put the
    new ones there.
    """
    if not change.remove and not change.added:
        return x
    kept, removed, after = x.split([end - change.remove, change.remove, x.shape[1] - end], dim=1)
    new = [] if change.add is None else [change.add.to(x.dtype).expand(x.shape[0], -1, -1)]
    if change.weight != 1:
        new = [torch.lerp(removed, vectors, change.weight) for vectors in new]
    return torch.cat([kept, *new, after], dim=1)
