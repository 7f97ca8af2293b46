"""predictions.npz: what a test predicted for each image. docs/predictions.md has its schema."""

import math
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy

from common.arrays import read_arrays
from common.errors import UsageError
from common.files import replacing
from common.results import MOST_BRIER, digest_of_rows, read_results

from .results import checked_summary

PREDICTIONS_FILE = "predictions.npz"
TOP = 5
LARGEST = 1 << 30  # bytes of the logits
LARGEST_READ = 1 << 30  # bytes of all other arrays: three million images with paths of 60 letters
# The columns, a row for each image: type and number of dimensions.
COLUMNS = {
    "label": ("i", 1),
    "classes": ("i", 2),
    "probabilities": ("f", 2),
    "log_probability": ("f", 1),
}
COLUMNS |= {"brier": ("f", 1)}
RANGES = (
    ("probabilities", 0, 1),
    ("log_probability", -math.inf, 1e-6),
    ("brier", -1e-6, MOST_BRIER),
)
WORDS = {
    "image": ("U", 1),
    "class_names": ("U", 1),
    "dataset": ("U", 0),
    "split": ("U", 0),
    "images_sha256": ("U", 0),
}

PredictionArrays = dict[str, np.ndarray]


def predictions_of(logits: Any, labels: Any) -> PredictionArrays:
    """The columns of a batch, from logits (batch, classes) and labels (batch,).

    The first class is that of `argmax`, on which accuracy counts, also where several have the
    largest logit.
    """
    log_p = logits.detach().double().log_softmax(dim=1)
    first = logits.argmax(dim=1, keepdim=True)
    classes = logits.scatter(1, first, math.inf).topk(min(TOP, logits.shape[1]), dim=1).indices
    of_label = log_p.gather(1, labels[:, None].to(log_p.device)).squeeze(1)
    p = log_p.exp()
    brier = p.square().sum(dim=1) - 2 * of_label.exp() + 1
    columns = {"label": labels.int(), "classes": classes.int()}
    columns["probabilities"] = p.gather(1, classes).float()
    columns["log_probability"] = of_label.float()
    columns["brier"] = brier.float()
    return {key: column.cpu().numpy() for key, column in columns.items()}


def save(file: Path, predictions: Mapping[str, Any]) -> None:
    """Write arrays to an .npz file, completely or not at all. Equal arrays give equal bytes."""
    with replacing(file) as partial, zipfile.ZipFile(partial, "w") as archive:
        for key, values in predictions.items():
            entry = zipfile.ZipInfo(f"{key}.npy")  # dated 1980
            # They hardly shrink
            entry.compress_type = zipfile.ZIP_STORED if key == "logits" else zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as stream:
                npy.write_array(cast(Any, stream), np.asarray(values), allow_pickle=False)


def read_predictions(folder: Path) -> PredictionArrays:
    """The predictions of a finished run, by the names of docs/predictions.md.

    Raises UsageError if there are none, the file is damaged, or it does not belong to the run's
    results.json.
    """
    file = folder / PREDICTIONS_FILE
    results = read_results(folder)
    if not file.is_file() or results is None:
        missing = "results.json" if results is None else PREDICTIONS_FILE
        raise UsageError(
            f"{folder} has no {missing}",
            "give the output folder of a finished run that tested",
            folder,
        )
    checked_summary(folder, results)  # checks what every run writes
    try:
        arrays = read_arrays(file, COLUMNS | WORDS, LARGEST_READ)
        check_predictions(arrays)
    except UsageError:  # too large
        raise
    except (
        Exception
    ) as error:  # a damaged file makes zipfile, its decompressors and numpy fail in any way
        raise UsageError(
            f"{file} is damaged", "delete it and results.json, and start its run again", file
        ) from error
    accuracy = 100 * float(np.mean(arrays["classes"][:, 0] == arrays["label"]))
    tested = str(arrays["images_sha256"])
    test = results.card.test
    recorded = results.dataset, results.n_test, test.sha256 if test else tested
    found = str(arrays["dataset"]), len(arrays["label"]), tested
    if recorded != found or abs(accuracy - results.accuracy) > 1e-6:
        raise UsageError(
            f"{file} is not of the run in results.json",
            "delete both, and start the run again",
            file,
        )
    return arrays


def check_predictions(arrays: PredictionArrays) -> None:
    """Raise ValueError or KeyError for arrays that no test has written."""
    for key, (kind, dimensions) in (COLUMNS | WORDS).items():
        if arrays[key].dtype.kind != kind or arrays[key].ndim != dimensions:
            raise ValueError(f"{key} has another type or number of dimensions")
        if kind == "U" and (arrays[key].ravel().view(np.uint32) > sys.maxunicode).any():
            raise ValueError(f"{key} has letters beyond Unicode")
    number = len(arrays["label"])
    if any(len(arrays[key]) != number for key in (*COLUMNS, "image")) or not number:
        raise ValueError("columns of different lengths")
    if arrays["classes"].shape != arrays["probabilities"].shape or not arrays["classes"].size:
        raise ValueError("not one probability for each class")
    last = len(arrays["class_names"]) - 1
    for key, low, high in (*RANGES, ("label", 0, last), ("classes", 0, last)):
        if not ((arrays[key] >= low) & (arrays[key] <= high)).all():  # also true of NaN
            raise ValueError(f"{key} outside {low} to {high}")
    if digest_of_rows(image_rows(arrays)) != str(arrays["images_sha256"]):
        raise ValueError("other images, labels or class names than the SHA-256 is of")


def image_rows(arrays: PredictionArrays) -> Iterator[tuple[str, int, str]]:
    """Path, label and class name of each image, one after another: a long name is in memory
    once.
    """
    names = arrays["class_names"].tolist()
    for path, label in zip(arrays["image"], arrays["label"], strict=True):
        yield str(path), int(label), names[label]
