"""Image files in batches: read, and classified by one or several models."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from dassl.utils import read_image
from PIL.Image import Image
from torch import Tensor

from .classifier import PromptedClassifier
from .images import in_threads, one_thread
from .models import Model

# Class names: until here one thread is as fast, and from here on their text features take long
FEW = 100
MANY = 5000
Batch = tuple[list[Path], list[Tensor], list[str]]


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
        except (OSError, ValueError) as error:  # an ImageError is both, that of Dassl an OSError
            errors.append(str(error))
        else:
            good.append(file)
            rows.append([pixels[key] for key in keys])
    return good, [torch.cat(column) for column in zip(*rows, strict=True)], errors


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
