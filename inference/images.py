"""Image files: found, then read and classified by threads."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from dassl.utils import read_image
from PIL.Image import Image
from torch import Tensor

from common.errors import UsageError
from datasets.base import spread
from datasets.folders import IMG_EXTENSIONS, files_below, is_image, kinds

if TYPE_CHECKING:
    from .classifier import PromptedClassifier
    from .models import Model

__all__ = ["find_images", "in_threads", "predict_files", "prepare", "read_batch", "spread"]
FEWEST = 8  # images of one call: each has some cost of its own
# Class names: until here one thread is as fast, and from here on their text features take long
FEW = 100
MANY = 5000
Batch = tuple[list[Path], list[Tensor], list[str]]
Item = TypeVar("Item")
Result = TypeVar("Result")


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and the image files in the folders and below, sorted within a
    folder.

    Hidden files and folders are left out. Links to folders are followed, each folder is searched
    once.

    Raises:
        UsageError: a folder has no images, or there are no paths.
    """
    files: list[Path] = []
    for path in paths:
        images = [path]
        if path.is_dir():
            seen = files_below(path)
            images = sorted(path / file for file in seen if is_image(file))
        if not images:
            what = f"no images in {path} ({' '.join(IMG_EXTENSIONS)}), but {kinds(seen)}"
            raise UsageError(what, "give another folder, or files", path)
        files += images
    if not files:
        raise UsageError(
            "no images are given", "name files or folders after the model, before --classes"
        )
    return files


def read_batch(
    files: Sequence[Path],
    classifiers: Sequence["PromptedClassifier"],
    read: Callable[..., Image] = read_image,
) -> Batch:
    """The images of some files by `read`. Classifiers with the same transform read an image once.

    Returns:
        the N files that could be read; for each classifier (N, [views,] 3, H, W), empty if N is 0;
        other files' faults.
    """
    keys = [f"{c.cfg.INPUT} {c.transform}" for c in classifiers]
    good = []
    rows = []
    errors = []
    distinct = dict(zip(keys, classifiers, strict=True))
    for file in files:
        try:
            pixels = {key: classifier.pixels([file], read) for key, classifier in distinct.items()}
        except (OSError, ValueError) as error:  # an ImageError is both, that of Dassl an OSError
            errors.append(str(error))
        else:
            good.append(file)
            rows.append([pixels[key] for key in keys])
    return good, [torch.cat(column) for column in zip(*rows, strict=True)], errors


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


def prepare(models: Sequence["Model"], class_names: Sequence[str] | None) -> None:
    """Compute text features before the threads, which would each compute them; errors are those of
    `PromptedClassifier.check_logits`.
    """
    for model in models:
        count = len(class_names or model.classifier.class_names)
        if count > MANY:
            print(
                f"{model.name}: computing the text features of {count:,} class names, which "
                "takes a while"
            )
        with one_thread() if count <= FEW else nullcontext():
            model.classifier.check_logits(class_names)


def predict_files(
    models: Sequence["Model"],
    files: Sequence[Path],
    class_names: Sequence[str] | None,
    batch_size: int,
    *asked: Any,
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """For one batch of files after another a row for each file and each model, and the faults of
    files that cannot be read.

    A row has `image`, `model` and what `Predictions.answers` says of what is `asked`.
    """
    classifiers = [model.classifier for model in models]

    def of_batch(batch: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
        good, inputs, faults = read_batch(batch, classifiers)
        columns = []
        for model, pixels in zip(models, inputs, strict=bool(good)):
            answers = model.classifier.predict(pixels, class_names).answers(*asked)
            columns.append([{"model": model.name} | answer for answer in answers])
        rows = zip(good, *columns, strict=True)
        return [{"image": str(file)} | row for file, *of_file in rows for row in of_file], faults

    views = max(classifier.views for classifier in classifiers)
    on_gpu = any(classifier.device.type == "cuda" for classifier in classifiers)
    return in_threads(of_batch, files, max(1, batch_size // views), on_gpu)
