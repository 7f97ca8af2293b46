"""Labelled images that are given to `Classifier`: paths, or images in memory."""

import io
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from PIL import Image
from sklearn.utils import column_or_1d

from common.errors import UsageError
from common.names import as_class_name
from inference.images import image_of

from .read_images import find
from .rows import Photo


def check_list(X: Any) -> None:
    """Raise UsageError for a single image in place of a list."""
    is_one = isinstance(X, str | PathLike | bytes | Mapping | Image.Image)
    is_pixels = isinstance(X, np.ndarray) and X.ndim == 3
    is_iterable = hasattr(X, "__iter__") or hasattr(X, "__getitem__")
    if is_one or is_pixels or not is_iterable:
        raise UsageError(f"X is {type(X).__name__}, and no list of images", "give a list: [X]")


def column_of(X: Any) -> Any:
    """The images: of a table with several columns those of its column `path`."""
    if not isinstance(X, pd.DataFrame):
        return X
    if len(X.columns) > 1 and "path" not in X.columns:
        raise UsageError("X is a table without a column path", "give a column: X['file']")
    return X["path"] if "path" in X.columns else X.iloc[:, 0]


def check_labels(y: ArrayLike) -> None:
    """Raise ValueError for a missing label, and for numbers beside texts. Beside texts,
    `np.asarray` would make NaN or a number one.
    """
    labels = np.asarray(y, dtype=object).ravel()
    missing = np.flatnonzero(pd.isna(labels))
    if len(missing):
        raise ValueError(f"image {missing[0]} of X has no label in y: leave it out")
    if len({isinstance(label, str) for label in labels}) > 1:
        raise ValueError("y has texts and numbers: give one kind of label")


def labels_of(y: ArrayLike) -> list[Any]:
    """The label of each image; ValueError for a table, and for one that is missing."""
    values = column_or_1d(np.asarray(y))
    check_labels(y)
    return values.tolist()


def class_names(y: ArrayLike, known: dict[str, Any]) -> dict[str, Any]:
    """The labels by the names of their classes, as CLIP reads them; `known` ones among them."""
    labels = dict(known)
    for label in np.unique(np.asarray(y)).tolist():
        name = as_class_name(str(label))
        if labels.get(name, label) != label:
            raise ValueError(f"the labels {labels[name]!r} and {label!r} are one class name")
        labels[name] = label
    return labels


def photos_of(
    X: Any, y: ArrayLike | None, folder: Path, known: dict[str, Any]
) -> tuple[list[Photo], dict[str, Any]]:
    """Labelled images, and their labels by the names of their classes; images that are in memory
    are written to the folder.
    """
    if y is None:
        if not isinstance(X, str | PathLike):
            fault = f"X is {type(X).__name__}, and there is no y"
            raise UsageError(fault, "give the label of each image, or a folder")
        photos = find(Path(X))
        return photos, class_names([photo.label for photo in photos], known)
    check_list(X)
    X = column_of(X)
    images = X if hasattr(X, "__len__") else list(X)
    values = labels_of(y)
    if len(images) != len(values):
        raise ValueError(f"X has {len(images)} images, and y has {len(values)} labels")
    labels = class_names(values, known)
    names = dict(zip(labels.values(), labels, strict=True))
    photos = [
        Photo(path_of(image, folder / f"{number:08}.png"), names[values[number]])
        for number, image in enumerate(images)
    ]
    return sorted(photos, key=lambda photo: (photo.label, photo.path)), labels


def path_of(image: Any, file: Path) -> str:
    """The path of an image; one that is in memory is written to the file."""
    source = image_of(image)
    if isinstance(source, str | PathLike):
        if not Path(source).is_file():
            raise UsageError(f"there is no image {str(source)!r}", "check its path")
        return str(source)
    pixels = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
    pixels.convert("RGB").save(file)
    return str(file)
