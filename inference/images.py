"""Image files on the command line: found, then read and classified by threads."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from threading import Lock

import torch
from dassl.utils import read_image
from PIL.Image import Image
from torch import Tensor

from common.errors import UsageError
from datasets.base import spread
from datasets.folders import IMG_EXTENSIONS, files_below, is_image, kinds

from .classifier import PromptedClassifier
from .models import Model
from .predict import Row

__all__ = ["Predictor", "find_images", "read_batch", "spread"]
FEWEST = 8  # images of one call: each has some cost of its own
# Class names: until here one thread is as fast, and from here on their text features take long
FEW = 100
MANY = 5000
Predicted = tuple[list[Row], list[str], int]
Batch = tuple[list[Path], list[Tensor], list[str]]


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
    classifiers: Sequence[PromptedClassifier],
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
        except (
            OSError,
            ValueError,
        ) as error:  # the toolbox's ImageError is both, the published one's an OSError
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


class Predictor:
    """The `k` most probable classes of image files: a row for each model. `names` replace the
    models' own, if given.

    A row also says whether the image is `unknown` and which classes a set for the share `coverage`
    has, if asked for.
    """

    def __init__(
        self,
        models: Sequence[Model],
        names: Sequence[str],
        k: int,
        unknown: bool = False,
        coverage: float | None = None,
    ):
        self.models = models
        self.names = names or None
        self.k = k
        self.unknown = unknown
        self.coverage = coverage
        for model in models:
            model.classifier.check_asked(unknown, coverage, self.names)
        self.on_gpu = any(model.classifier.device.type == "cuda" for model in models)
        self.views = max(model.classifier.views for model in models)
        self.turn: AbstractContextManager = Lock() if self.on_gpu else nullcontext()
        for model in models:  # text features before the threads, which would each compute them
            if (count := len(self.names or model.classifier.class_names)) > MANY:
                print(
                    f"{model.name}: computing the text features of {count:,} class names, which "
                    "takes a while"
                )
            with one_thread() if count <= FEW else nullcontext():
                model.classifier.check_logits(self.names)

    def __call__(self, files: Sequence[Path], batch_size: int) -> Iterator[Predicted]:
        """For one batch after another the rows of its files, the faults of others, and how many
        could be read.

        There are as many threads as torch has, and each of them computes with one: small layers are
        twice as fast as with all threads on one batch, and a busy machine slows them down less. On
        a CPU, the threads together have `batch_size` images, or views of images, at a time.
        """
        threads = torch.get_num_threads()
        most = max(1, batch_size // self.views)
        size = (
            most
            if self.on_gpu
            else max(min(FEWEST, most), math.ceil(min(most, len(files)) / threads))
        )
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(
                self.of_batch, (files[start : start + size] for start in range(0, len(files), size))
            )

    def of_batch(self, files: Sequence[Path]) -> Predicted:
        good, batches, errors = read_batch(files, [model.classifier for model in self.models])
        rows: list[list[Row]] = [[] for _ in good]
        for (name, classifier), inputs in zip(self.models, batches, strict=bool(good)):
            classes = self.names or classifier.class_names
            with self.turn:
                logits = classifier.logits(inputs, self.names)
            probabilities = classifier.repaired(logits, self.names).softmax(dim=-1)
            top = probabilities.topk(min(self.k, len(classes)))
            unknown = classifier.unknown(logits).tolist() if self.unknown else [None] * len(good)
            sets = (
                [None] * len(good)
                if self.coverage is None
                else classifier.sets(logits, self.coverage)
            )
            for number, pairs in enumerate(
                zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ):
                best = [(classes[index], value) for index, value in zip(*pairs, strict=True)]
                members = in_set(sets[number], probabilities[number], classes)
                rows[number].append(Row(str(good[number]), name, best, unknown[number], members))
        return list(chain(*rows)), errors, len(good)


def in_set(
    members: Tensor | None, probabilities: Tensor, classes: Sequence[str]
) -> list[tuple[str, float]] | None:
    """The classes of a set (classes,) with their probabilities, the most probable first; None
    without a set.
    """
    if members is None:
        return None
    order = probabilities.argsort(descending=True, stable=True)
    return [
        (classes[index], probabilities[index].item()) for index in order[members[order]].tolist()
    ]
