"""Image files on the command line: found, then decoded ahead by threads."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import UsageError
from datasets.folders import IMG_EXTENSIONS
from trainers.classifier import PromptedClassifier

AHEAD = 2  # batches that are decoded while one is classified


class Batch(NamedTuple):
    """Images that could be read, and those that could not.

    Attributes:
        files: N paths.
        inputs: for each classifier (N, 3, H, W), by its own transform.
        errors: what is wrong with each of the others.
    """

    files: list[Path]
    inputs: list[Tensor]
    errors: list[str]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and the image files in the folders and below, sorted within a folder.

    Raises:
        UsageError: a folder has no images, or there are no paths.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        images = sorted(file for file in found if is_image(file.relative_to(path)))
        if not images:
            raise UsageError(f"no images in {path} ({' '.join(IMG_EXTENSIONS)})", "give another folder, or files", path)
        files += images
    if not files:
        raise UsageError("no images are given", "name files or folders after the model, before --classes")
    return files


def is_image(file: Path) -> bool:
    """Whether a path in a folder names an image; hidden files and folders are left out."""
    return file.suffix.lower() in IMG_EXTENSIONS and not any(part.startswith(".") for part in file.parts)


def read_batches(files: Sequence[Path], classifiers: Sequence[PromptedClassifier], size: int) -> Iterator[Batch]:
    """The images in batches of `size` files, in their order; threads decode some batches ahead."""
    keys = [str(classifier.cfg.INPUT) for classifier in classifiers]
    distinct = dict(zip(keys, classifiers, strict=True))  # of those that read images alike, one does so
    waiting: deque[list[Future]] = deque()

    def collect(results: list[Future]) -> Batch:
        done = [future.result() for future in results]
        good = [(file, tensors) for file, tensors in done if not isinstance(tensors, str)]
        images = zip(*(tensors for _, tensors in good), strict=True)
        inputs = dict(zip(distinct, map(torch.stack, images), strict=False))
        errors = [error for _, error in done if isinstance(error, str)]
        return Batch([file for file, _ in good], [inputs[key] for key in keys if good], errors)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), size):
            waiting.append([pool.submit(read, file, distinct.values()) for file in files[start : start + size]])
            if len(waiting) > AHEAD:
                yield collect(waiting.popleft())
        while waiting:
            yield collect(waiting.popleft())


def read(file: Path, classifiers: Iterable[PromptedClassifier]) -> tuple[Path, list[Tensor] | str]:
    """A file and its tensor for each classifier, or what is wrong with it."""
    if not file.exists():
        return file, f"there is no file {str(file)!r}"
    try:
        return file, [classifier.transform(classifier.read(file)) for classifier in classifiers]
    except (OSError, ValueError) as error:  # the toolbox's ImageError is both, the published one's an OSError
        return file, str(error)
