"""Checkpoints of a training run: their names in a folder, and the form of their content."""

import os
import re
from contextlib import suppress
from typing import Any

from .errors import UsageError

LONGEST_NAME = 255  # bytes
LARGEST_EPOCH = 2**53


def newest_name(folder: str | os.PathLike) -> str | None:
    """The name in the text file `checkpoint` of a folder of checkpoints; None without that file.
    Raises UsageError if it does not name a file of this folder."""
    pointer = os.path.join(folder, "checkpoint")
    if not os.path.isfile(pointer):
        return None
    with open(pointer, "rb") as file:
        name = os.fsdecode(file.readline(LONGEST_NAME).strip())
    if os.path.basename(name) != name or not name.isprintable():
        remedy = "delete it, or write the name of a checkpoint"
        raise UsageError(f"{pointer} does not name a file of its folder", remedy, pointer)
    return name


def checkpoint_names(folder: str | os.PathLike, epoch: int | None) -> list[str]:
    """Names that a checkpoint of this epoch may have in a folder; for None the best one's, then the
    newest first.
    """
    if epoch is not None:
        return [f"model.pth.tar-{epoch}"]
    names: list[str | None] = ["model-best.pth.tar"]
    with suppress(UsageError):  # a damaged text file is like none
        names += [newest_name(folder)]
    if os.path.isdir(folder):  # people pass checkpoints on without the file that names the newest
        numbered = (re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in os.listdir(folder))
        names += [
            match[0] for match in sorted(filter(None, numbered), key=lambda match: -int(match[1]))
        ]
    return list(filter(None, names))


def is_checkpoint(content: Any) -> bool:
    """Whether the content of a file has the form of a checkpoint: tensors by name, and an epoch."""
    if not isinstance(content, dict):
        return False
    state = content.get("state_dict")
    epoch = content.get("epoch")
    return is_state_dict(state) and type(epoch) is int and 0 <= epoch < LARGEST_EPOCH


def is_state_dict(state: Any) -> bool:
    """Whether it is a dict of tensors by name."""
    from torch import Tensor

    return isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )
