"""The images of a fit: found in folders or a CSV file, without copies on both sides of a split."""

import csv
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.errors import UsageError
from common.names import check_known_names, printable
from common.text import read_text
from datasets.base import missing_files, same_names
from datasets.folders import IMG_EXTENSIONS

PARTS = ("train", "val", "test")
LAYOUT = "give a folder with one folder of images for each class, or a CSV file with the columns path and label"


class Photo(NamedTuple):
    """An image file and its class; `part` is one of PARTS."""

    path: str
    label: str
    part: str = "train"


def find(place: Path, test: Path | None = None) -> list[Photo]:
    """The labelled images of a folder or a CSV file, and the test images in another one, sorted by class and path.

    Raises:
        UsageError: there are no images or fewer than two classes, an image of a CSV file is missing, or the folders
            are not those of classes.
    """
    photos = read_csv(place) if place.is_file() else read_folder(place)
    if test:
        more = read_csv(test) if test.is_file() else read_folder(test)
        photos = [photo for photo in photos if photo.part != "test"] + [photo._replace(part="test") for photo in more]
    learned = sorted({photo.label for photo in photos if photo.part != "test"})
    if len(learned) < 2:
        what = f"{place} has {'one class, ' + repr(learned[0]) if learned else 'no training images'}"
        raise UsageError(what, f"a classifier needs two classes: {LAYOUT}", place)
    check_known_names([name.replace("_", " ") for name in learned], place)
    if unknown := {photo.label for photo in photos} - set(learned):
        what = f"the test images have the class {min(unknown)!r}, which the training images lack"
        raise UsageError(what, "rename or remove it", test or place)
    return sorted(photos, key=lambda photo: (PARTS.index(photo.part), photo.label, photo.path))


def read_folder(place: Path) -> list[Photo]:
    """The images of class folders; train/, val/ and test/ in the folder hold class folders themselves."""
    if not place.is_dir():
        raise UsageError(f"there is no folder or file {place}", LAYOUT, place)
    parts = [part for part in PARTS if (place / part).is_dir()]
    if "train" not in parts:
        return read_classes(place, "train")
    return [photo for part in parts for photo in read_classes(place / part, part)]


def read_classes(parent: Path, part: str) -> list[Photo]:
    photos: list[Photo] = []
    below = ""  # a class folder that has folders instead of images
    with os.scandir(parent) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in folders:
        with os.scandir(parent / name) as listed:
            inside = [entry for entry in listed if not entry.name.startswith(".")]
        images = [entry.path for entry in inside if entry.name.lower().endswith(IMG_EXTENSIONS) and entry.is_file()]
        photos += [Photo(path, name, part) for path in images]
        if not images and any(entry.is_dir() for entry in inside):
            below = below or f"{parent / name}"
    if not photos:
        what = f"the class folders of {parent} hold folders, such as {below}" if below else f"no images in {parent}"
        raise UsageError(what, LAYOUT, parent)
    if below:
        print(f"Left out: {printable(below)} has folders, and no images")
    return photos


def read_csv(file: Path) -> list[Photo]:
    """The images of a CSV file: path (relative to the file's folder), label and, optionally, split (of PARTS)."""
    rows = csv.DictReader(read_text(file).splitlines())
    if not {"path", "label"} <= set(rows.fieldnames or ()):
        what = f"{file} has the columns {', '.join(map(printable, rows.fieldnames or ())) or 'of no table'}"
        raise UsageError(what, "give it the columns path and label (and split, if you like)", file)
    photos = []
    for row in rows:
        path, label, part = row["path"] or "", (row["label"] or "").strip(), row.get("split") or "train"
        if not path or not label or part not in PARTS:
            what = f"line {rows.line_num} of {file} has no path, no label or another split than {', '.join(PARTS)}"
            raise UsageError(what, "fix that line", file)
        photos.append(Photo(str(file.parent / path), label, part))
    if missing := missing_files(photo.path for photo in photos):
        what = f"{len(missing)} of {len(photos)} images of {file} are missing, such as {missing[0]}"
        raise UsageError(what, "fix the column path: it is relative to the folder of the CSV file", file)
    return photos


@dataclass(frozen=True)
class Images:
    """Images that can be used, each once.

    Attributes:
        photos: those for training first, by class.
        pixels: for each photo the SHA-256 of its decoded pixels.
        names: of the classes, sorted.
        damaged: what is wrong with images that are left out, by path.
        warnings: what else is left out.
    """

    photos: list[Photo]
    pixels: list[str]
    names: list[str]
    damaged: Mapping[str, str]
    warnings: list[str]

    def of(self, *parts: str) -> list[int]:
        """The places of the photos of these parts."""
        return [place for place, photo in enumerate(self.photos) if photo.part in parts]

    def labels(self, places: Sequence[int]) -> list[int]:
        return [self.names.index(self.photos[place].label) for place in places]


def usable(photos: Sequence[Photo], pixels: Mapping[str, str], damaged: Mapping[str, str]) -> Images:
    """The images without damaged ones and copies. Of copies the first is kept: one for training before one for a test.

    An image that has two labels is left out, as one of them must be wrong.

    Args:
        pixels: the SHA-256 of the decoded pixels, by path; of damaged images there is none.

    Raises:
        UsageError: fewer than two classes are left.
    """
    labels: dict[str, set[str]] = defaultdict(set)
    for photo in photos:
        labels[pixels.get(photo.path, "")].add(photo.label)
    labels.pop("", None)
    kept: dict[str, Photo] = {}
    copies = 0
    for photo in photos:
        key = pixels.get(photo.path, "")
        if key and len(labels[key]) == 1:
            copies += key in kept
            kept.setdefault(key, photo)
    names = sorted({photo.label for photo in kept.values() if photo.part != "test"})
    if len(names) < 2:
        remedy = "replace damaged images, and images that are in two classes"
        raise UsageError("fewer than two classes have an image that can be used", remedy)
    lost = sorted({photo.label for photo in photos}.difference(names))
    kept = {key: photo for key, photo in kept.items() if photo.label not in lost}
    two = [key for key, classes in labels.items() if len(classes) > 1]
    warnings = []
    if two:
        example = next(photo.path for photo in photos if pixels.get(photo.path) == two[0])
        places = " and ".join(sorted(labels[two[0]]))
        warnings.append(f"Left out as they are in two classes: {len(two)} images, such as {example} ({places})")
    if copies:
        warnings.append(f"Left out as copies of other images: {copies} images")
    if lost:
        warnings.append(f"Left out as no training image can be used: {', '.join(lost)}")
    if twins := same_names(names):
        warnings.append(twins)
    return Images(list(kept.values()), list(kept), names, damaged, warnings)
