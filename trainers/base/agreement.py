"""The facts that the ranks of a run compare."""

from typing import Any

from .data_use import list_digest


def digest_of_images(dataset: Any, root: str) -> str:
    """A checksum of the paths below `root`, the labels and the class names of all splits."""
    return " ".join(list_digest(split or (), root) for split in (dataset.train_x, dataset.val, dataset.test))
