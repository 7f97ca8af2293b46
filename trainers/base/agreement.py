"""The facts that the ranks of a run compare."""

import hashlib
import os
from typing import Any


def digest_of_images(dataset: Any, root: str) -> str:
    """A checksum of the paths below `root`, the labels and the class names of all splits."""
    sha256 = hashlib.sha256()
    for split in (dataset.train_x, dataset.val, dataset.test):
        for item in split or ():
            path = os.path.relpath(item.impath, root) if item.impath else ""
            sha256.update(f"{path}\0{item.label}\0{item.classname}\n".encode(errors="surrogateescape"))
        sha256.update(b"\0")
    return sha256.hexdigest()
