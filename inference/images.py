"""Image files: found, and worked on by threads."""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from dassl.utils.images import read_image
from PIL import Image
from torch import Tensor

from common.errors import UsageError
from common.image_files import IMG_EXTENSIONS, files_below, is_image, kinds

from .addresses import Address

BATCH = 100  # images at a time, as in the published tests
FEWEST = 8  # items of one batch: each has some cost of its own
# An image file, its content, or an image in memory: of Pillow, or (H, W, 3) of bytes in RGB
Pixels = str | PathLike | bytes | Image.Image | np.ndarray
Images = Pixels | Tensor | Sequence[Pixels]
Item = TypeVar("Item")
Result = TypeVar("Result")


def find_images(paths: Sequence[Any]) -> list[Any]:
    """The files among the paths, and the image files in the folders and below, sorted within a
    folder.

    Hidden files and folders are left out. Links to folders are followed, each folder is searched
    once.

    Raises:
        UsageError: a folder has no images, or there are no paths.
    """
    files: list[Any] = []
    for path in paths:
        images = [path]
        seen: list[str] = []
        if isinstance(path, Address):
            images = [*path.images()]
        elif path.is_dir():
            seen = files_below(path)
            images = sorted(path / file for file in seen if is_image(file))
        if not images:
            fault = f"no images in {path} ({' '.join(IMG_EXTENSIONS)}), but {kinds(seen)}"
            raise UsageError(fault, "give another folder, or files", path)
        files += images
    if not files:
        raise UsageError(
            "no images are given", "name files or folders after the model, before --classes"
        )
    return files


def image_of(image: Any) -> Any:
    """An image as a classifier reads it: a file, its content or a PIL image. An array (H, W, 3) of
    bytes in RGB becomes a PIL image, and a row of a column of Hugging Face that is not decoded
    becomes its bytes or its path.

    Raises:
        UsageError: it has another type.
    """
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str | PathLike | bytes | Image.Image):
        return image
    fault = f"{type(image).__name__} is not an image"
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return Image.fromarray(image)
        fault = f"an array of type {image.dtype} and shape {image.shape} is not an image"
    raise UsageError(
        fault, "give a path, bytes, a PIL image, or an array (H, W, 3) of uint8 in RGB"
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread. In small operations, several wait for one another: 1 of 1.3 seconds
    for one image.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_threads(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], most: int, on_gpu: bool
) -> Iterator[Result]:
    """What `work` returns for one batch of items after another, in their order.

    There are as many threads as torch has, and each of them computes with one: small layers are
    twice as fast as with all threads on one batch, and a busy machine slows them down less. All
    threads together have `most` items at a time; on a GPU, which computes one batch after another,
    each of them has.
    """
    threads = torch.get_num_threads()
    size = most
    if not on_gpu:
        size = max(math.ceil(min(most, len(items)) / threads), min(FEWEST, most))
    batches = (items[start : start + size] for start in range(0, len(items), size))
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, batches)
    finally:
        torch.set_num_threads(threads)  # also of threads that start later


def in_batches(
    images: Images,
    compute: Callable[[Tensor], Tensor],
    read: Callable[[Sequence[Pixels]], Tensor],
    most: int,
    on_gpu: bool,
) -> Iterable[Tensor]:
    """What `compute` returns for the pixels of one batch of images after another.

    Args:
        images: as for `PromptedClassifier.logits`; a tensor has pixels.
        read: gives the pixels of images.
        most: images at a time, which all threads read together.
    """
    if isinstance(images, Tensor):
        pixels = images[None] if images.dim() == 3 else images
        return map(compute, pixels.split(BATCH))
    if isinstance(images, np.ndarray) and images.ndim in (1, 4):  # of paths, or of images
        images = list(images)
    several = [images] if isinstance(images, Pixels) else list(images)
    if len(several) <= min(FEWEST, most):
        return [compute(read(several))] if several else []
    return in_threads(lambda part: compute(read(part)), several, most, on_gpu)


def jpeg_of(path: str, side: int, max_pixels: int | None = None) -> bytes:
    """An image as a JPEG whose longer side has at most `side` pixels.

    Raises:
        UsageError: it cannot be read.
    """
    image = read_image(path, max_pixels)
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return content.getvalue()
