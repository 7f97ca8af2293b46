"""The labelled images of a bank (`inference/bank.py`), whose files are not opened."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UsageError
from common.names import plain, printable
from datasets import image_facts
from datasets.image_folder import PARTS
from inference.bank import Bank, BankFiles

from .rows import Photo, photos_in_rows, rows_of

if TYPE_CHECKING:
    from .features import Features, Row

COLUMNS = "path", "sha256", "label", "pixels_sha256"
MOST_FAULTS = 5  # that are named
LOOK = "sha256", "pixels_sha256", "signature", "camera", "second"


def labelled(rows: Sequence[Mapping[str, Any]], labels: Path | None) -> list[Photo | None]:
    """The image of each row with its class; None if nothing says it."""
    if labels:
        known = {os.path.abspath(one.path): one for one in photos_in_rows(rows_of(labels), labels)}
        return [known.get(os.path.abspath(row["path"])) for row in rows]
    if rows and "label" in rows[0]:
        return [
            Photo(row["path"], plain(str(row["label"]))) if row["label"] not in (None, "") else None
            for row in rows
        ]
    return list(by_folders([row["path"] for row in rows]))


def photos_in(folder: Path, labels: Path | None = None) -> list[Photo]:
    """The images of a bank with their classes: those of a CSV file with path and label, else of the
    column label of the bank, else of the folders in the paths.

    Raises:
        UsageError: two images have one path, or no image has a label.
    """
    rows = rows_in(folder)
    if len({row["path"] for row in rows}) < len(rows):
        raise UsageError(
            f"{folder} has several images of one path",
            "embed images with paths of their own",
            folder,
        )
    photos = zip(labelled(rows, labels), rows, strict=True)
    found = [of_bank(photo, row, folder) for photo, row in photos if photo]
    if not found:
        fault = f"no image of {folder} has a label" + (f" in {labels}" if labels else "")
        remedy = "give --labels CSV, with paths that are absolute or relative to its folder"
        raise UsageError(fault, remedy, folder)
    if len(found) < len(rows):
        print(printable(f"Left out: {len(rows) - len(found):,} images of {folder} without a label"))
    return found


def unlabelled_in_bank(folder: Path) -> list[Photo]:
    """All images of a bank, without their labels."""
    return [of_bank(Photo(row["path"], ""), row, folder) for row in rows_in(folder)]


def of_bank(photo: Photo, row: Mapping[str, Any], folder: Path) -> Photo:
    """The image of a row of a bank."""
    return replace(
        photo,
        path=row["path"],
        sha256=row["sha256"],
        pixels_sha256=row.get("pixels_sha256", ""),
        bank=str(folder),
    )


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """The images of a bank; an image that was listed several times is there once."""
    parts = BankFiles(Bank(folder).files).parts(*COLUMNS)
    rows = (row for part in parts for row in part.to_pylist())
    return list({(row["path"], row["sha256"]): row for row in rows}.values())


def by_folders(paths: Sequence[str]) -> Iterator[Photo | None]:
    """The images by the names of their class folders, which are perhaps in train/, val/ and test/;
    None for an image in no folder.
    """
    folders = {os.path.dirname(path) for path in paths}
    top = os.path.commonpath(folders) if len(set(map(os.path.isabs, folders))) == 1 else ""
    places = [os.path.relpath(path, top or ".").split(os.sep) for path in paths]
    has_parts = any(place[0] == PARTS[0] and len(place) > 2 for place in places)
    for path, place in zip(paths, places, strict=True):
        part = place[0] if has_parts else "train"
        label, *below = place[has_parts:]
        known = part in PARTS and below
        yield Photo(path, plain(label), part, below="/".join(below)) if known else None


def features_of(
    photos: Sequence[Photo], encoder: "Features"
) -> tuple[dict[str, "Row"], dict[str, str]]:
    """`Features.of` the photos; of those in a bank, it is read there."""
    rows, damaged = encoder.of({photo.path: photo.sha256 for photo in photos if not photo.bank})
    for folder in sorted({Path(photo.bank) for photo in photos if photo.bank}):
        bank = Bank(folder)
        behind = bank.check(encoder.classifier)
        wanted = {photo.path for photo in photos if photo.bank == str(folder)}
        for row in BankFiles(bank.files).images("path", *LOOK):
            path = row["path"]
            if path in wanted and row["fault"]:
                damaged[path] = row["fault"]
            elif path in wanted:
                behind.check_width(len(row["before"]))
                rows[path] = row_of(row)
    return rows, damaged


def notes_of(damaged: Mapping[str, str]) -> list[str]:
    """Some of the faults, for the user."""
    return [f"Left out: {fault}" for fault in list(damaged.values())[:MOST_FAULTS]]


def row_of(known: Mapping[str, Any]) -> "Row":
    """The facts of an image in a bank."""
    import torch

    from .features import Row

    signature = np.zeros(image_facts.SHAPE, dtype=np.int8)
    if "signature" in known:
        signature = np.array(known["signature"], dtype=np.int8).reshape(image_facts.SHAPE)
    taken = image_facts.Taken(known.get("camera", 0), known.get("second", float("nan")))
    pixels = known.get("pixels_sha256") or known["sha256"]
    return Row(pixels, signature, taken, torch.from_numpy(known["before"].copy()))
