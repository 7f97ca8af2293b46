"""Image files in batches: read, and classified by one or several models."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from dassl.utils.images import MAX_BYTES, Content, read_image
from PIL.Image import Image as Picture
from torch import Tensor

from common.errors import MissingFileError, UsageError
from common.text import read_bytes
from datasets.image_facts import Look

from .addresses import Image, UnreachableError
from .bank import BankFiles
from .classifier import PromptedClassifier
from .head_only import HeadOnly
from .images import in_threads, one_thread
from .load import Model
from .options import PredictOptions

# Class names: until here one thread is as fast, and from here on their text features take long
FEW = 100
MANY = 5000
AnswerRow = dict[str, Any]


def content_of(file: Image) -> Content:
    """The content of an image file; UsageError if it cannot be read."""
    try:
        raw = read_bytes(file, MAX_BYTES) if isinstance(file, Path) else file.read()
    except MissingFileError:
        raise UsageError(f"there is no file {str(file)!r}", "check its path") from None
    content = Content(raw)
    content.name = repr(str(file))
    return content


def read_batch(
    files: Sequence[Image],
    classifiers: Sequence[PromptedClassifier],
    content: Callable[[Any], Any] = content_of,
    read: Callable[..., Picture] = read_image,
) -> tuple[list[str], list[Tensor]]:
    """The images of some files, whose `content` is opened once, and decoded by `read`.

    Returns:
        for each file why it has no image, or an empty text; for each classifier (N, [views,] 3, H,
        W) of the N files that have one, nothing if N is 0.
    """
    keys = [f"{c.cfg.INPUT} {c.transform}" for c in classifiers]
    rows = []
    faults = []
    distinct = dict(zip(keys, classifiers, strict=True))
    for file in files:
        try:
            opened = [content(file)]
            pixels = {key: classifier.pixels(opened, read) for key, classifier in distinct.items()}
        except UnreachableError:
            raise
        except (OSError, ValueError) as error:  # an ImageError is both, that of Dassl an OSError
            faults.append(str(error))
        else:
            faults.append("")
            rows.append([pixels[key] for key in keys])
    return faults, [torch.cat(column) for column in zip(*rows, strict=True)]


class Reader:
    """Reads the images of a batch one after another, and keeps what is known of each file.

    Args:
        digests, looks: whether that is also the SHA-256 of the file, and how the image looks.

    Attributes:
        sizes: (width, height) by file.
    """

    def __init__(self, digests: bool = False, looks: bool = False):
        self.wants_digests = digests
        self.wants_looks = looks
        self.file: Any = None
        self.sizes: dict[Any, tuple[int, int]] = {}
        self.digests: dict[Any, str] = {}
        self.looks: dict[Any, Look] = {}

    def content(self, file: Image) -> Content:
        self.file = file
        content = content_of(file)
        if self.wants_digests:
            self.digests[file] = hashlib.sha256(content).hexdigest()
        return content

    def image(self, *how: Any) -> Picture:
        image = read_image(*how)
        self.sizes[self.file] = image.size
        if self.wants_looks:
            self.looks[self.file] = Look.of(image)
        return image


def prepare(models: Sequence[Model], class_names: Sequence[str] | None) -> None:
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
    models: Sequence[Model],
    files: Sequence[Image] | BankFiles,
    options: PredictOptions,
) -> Iterator[list[AnswerRow]]:
    """For one batch of files after another a row for each file and each model.

    Files may be those of a bank. A row has `image`, `size`, `model` and what `Predictions.answers`
    says. A file that cannot be read has one row, with `image` and `error`.
    """
    if isinstance(files, BankFiles):
        return predict_rows(models, files, options)
    classifiers = [model.classifier for model in models]
    views = max(classifier.views for classifier in classifiers)
    on_gpu = any(classifier.on_gpu for classifier in classifiers)
    work = partial(predict_batch, models, options)
    return in_threads(work, files, max(1, options.batch_size // views), on_gpu)


def predict_batch(
    models: Sequence[Model], options: PredictOptions, batch: Sequence[Image]
) -> list[AnswerRow]:
    reader = Reader()
    asked = options.topk, options.unknown, options.sets
    classifiers = [model.classifier for model in models]
    faults, inputs = read_batch(batch, classifiers, reader.content, reader.image)
    answers = [
        classifier.predict(pixels, options.class_names).answers(*asked)
        for classifier, pixels in zip(classifiers, inputs, strict=bool(inputs))
    ]
    return answer_rows(
        models, zip(batch, faults, map(reader.sizes.get, batch), strict=True), answers
    )


def predict_rows(
    models: Sequence[Model], files: BankFiles, options: PredictOptions
) -> Iterator[list[AnswerRow]]:
    """`predict_files` by the features in a bank."""
    behind = [HeadOnly(model.classifier) for model in models]
    for part in files.rows("path", "width", "height"):
        before = torch.from_numpy(part.before)
        said = [one.predict(before, options.class_names) for one in behind if len(before)]
        answers = [one.answers(options.topk, options.unknown, options.sets) for one in said]
        images, *sides = part.columns.values()
        sizes: list[Any] = list(zip(*sides, strict=True)) or [None] * len(images)
        yield answer_rows(models, zip(images, part.faults, sizes, strict=True), answers)


def answer_rows(
    models: Sequence[Model],
    images: Iterable[tuple[Any, str, Any]],
    answers: Sequence[Sequence[AnswerRow]],
) -> list[AnswerRow]:
    """The rows of images, each with its fault and its size. Those without a fault have answers by
    each model.
    """
    of_good = zip(*answers, strict=True)
    rows: list[AnswerRow] = []
    for image, fault, size in images:
        known = {"image": str(image), "size": size}
        if fault:
            rows.append(known | {"error": fault})
        else:
            of_models = zip(models, next(of_good), strict=True)
            rows += [known | {"model": model.name} | answer for model, answer in of_models]
    return rows
