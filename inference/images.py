"""Image files on the command line: found, then read and classified by threads."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from common.errors import UsageError
from datasets.folders import IMG_EXTENSIONS

from .classifier import PromptedClassifier

Result = TypeVar("Result")
Batch = tuple[list[Path], list[Tensor], list[str]]


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


def spread(files: Sequence[Path], most: int) -> list[Path]:
    """At most this many of the files, evenly spread over them."""
    count = min(most, len(files))
    return [files[number * len(files) // count] for number in range(count)]


def is_image(file: Path) -> bool:
    """Whether a path in a folder names an image; hidden files and folders are left out."""
    return file.suffix.lower() in IMG_EXTENSIONS and not any(part.startswith(".") for part in file.parts)


def read_batch(files: Sequence[Path], classifiers: Sequence[PromptedClassifier]) -> Batch:
    """The images of some files. Classifiers with the same transform read an image once.

    Returns:
        the N files that could be read; for each classifier (N, 3, H, W), empty if N is 0; the faults of other files.
    """
    keys, good, rows, errors = [str(classifier.cfg.INPUT) for classifier in classifiers], [], [], []
    distinct = dict(zip(keys, classifiers, strict=True))
    for file in files:
        try:
            pixels = {key: classifier.pixels([file]) for key, classifier in distinct.items()}
        except (OSError, ValueError) as error:  # the toolbox's ImageError is both, the published one's an OSError
            errors.append(str(error))
        else:
            good.append(file)
            rows.append([pixels[key] for key in keys])
    return good, [torch.cat(column) for column in zip(*rows, strict=True)], errors


def by_threads(work: Callable[[Sequence[Path]], Result], files: Sequence[Path], size: int) -> Iterator[Result]:
    """The results of `work` for batches of `size` files, in their order.

    There are as many threads as torch has, and each of them computes with one: small layers are twice as fast as with
    all threads on one batch, and a busy machine slows them down less.
    """
    threads, starts = torch.get_num_threads(), range(0, len(files), size)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(work, (files[start : start + size] for start in starts))
