"""The prompt schedule: which vectors leave and which enter the sequence before each layer of a tower.

Three operations describe every prompt-learning method on CLIP (Huang et al., 2025, Sec. IV, Table I): *remove* takes
prompts off the end of what the previous layer put out, *add* appends new ones to the layer's input, and *carry* is
what happens to all that was not removed. Deep prompting removes all and adds as many; shallow prompting only ever adds
before layer 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .errors import ClipError


@dataclass(frozen=True)
class Edit:
    """What happens to the prompts before one layer.

    Args:
        remove: how many to take off the end of those present.
        add: vectors to append then, (n, width), or (batch, n, width) for each sequence its own; None adds nothing.
    """

    remove: int = 0
    add: Tensor | None = None

    @property
    def added(self) -> int:
        return 0 if self.add is None else self.add.shape[-2]


# Entry l is done before layer l; layers beyond the last entry carry all prompts on.
Schedule = Sequence[Edit]


@dataclass(frozen=True)
class TextPrompts:
    """What the text tower reads: a row of tokens for each class, with learned vectors in some of the places.

    Args:
        ids: (classes, context_length) token ids; whatever stands at `slots` is a placeholder.
        ctx: learned vectors, (n, width) for all classes, (classes, n, width) for each its own, or
            (images, 1, n, width) for each image its own; None for plain text.
        slots: (classes, n) positions they take; None means 1..n, right behind SOS.
        deep: edits of the prompts at positions 1..n. Its entry 0 must be empty: layer 0 has `ctx`.
    """

    ids: Tensor
    ctx: Tensor | None = None
    slots: Tensor | None = None
    deep: Schedule = ()


def prompt_lengths(adds: Sequence[int], removes: Sequence[int], layers: int) -> list[int]:
    """How many prompts each layer sees.

    Args:
        adds, removes: how many are added and removed before each layer; layers beyond the last entry carry on.
        layers: the tower's depth.

    Raises:
        ClipError: more entries than layers, or more removed than present; the message names the layer.
    """
    if len(adds) > layers:
        raise ClipError(f"prompts for {len(adds)} layers, but the tower has {layers}: lower the prompt depth")
    lengths, present = [], 0
    for layer in range(layers):
        add, remove = (counts[layer] if layer < len(counts) else 0 for counts in (adds, removes))
        if remove > present:
            raise ClipError(
                f"cannot remove {remove} prompts before layer {layer}, which has {present}: remove fewer, add more"
            )
        present += add - remove
        lengths.append(present)
    return lengths


def check_edits(schedule: Schedule, present: int, layers: int) -> None:
    """Raise ClipError for what cannot be, in a tower of so many layers with `present` prompts at its start."""
    adds, removes = [edit.added for edit in schedule], [edit.remove for edit in schedule]
    prompt_lengths([present + sum(adds[:1]), *adds[1:]], removes, layers)
