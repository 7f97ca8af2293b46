"""The images of a fit: found in folders or a CSV file, without copies on both sides of a split."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.errors import UsageError
from common.names import check_known_names, printable
from common.text import read_text
from datasets.base import missing_files, same_names
from datasets.folders import files_below, is_image
from datasets.image_folder import PARTS
from datasets.preparing.own_images import OwnImages

LAYOUT = "give a folder with one folder of images for each class, or a CSV file with the columns path and label"


class Photo(NamedTuple):
    """An image file and the name of its class; `part` is one of PARTS."""

    path: str
    label: str
    part: str = "train"


def find(place: Path, test: Path | None = None) -> list[Photo]:
    """The labelled images of a folder or a CSV file, and the test images of another one, sorted by class and path.

    Raises:
        UsageError: there are fewer than two classes with images, an image is missing, or a class has only test images.
    """
    photos = read(place)
    if test:
        photos = [photo for photo in photos if photo.part != "test"]
        photos += [photo._replace(part="test") for photo in read(test)]
    learned = sorted({photo.label for photo in photos if photo.part != "test"})
    if len(learned) < 2:
        what = f"{place} has images of {len(learned)} class{'' if len(learned) == 1 else 'es'}"
        raise UsageError(what, f"a classifier needs two: {LAYOUT}", place)
    check_known_names(learned, place)
    if unknown := {photo.label for photo in photos}.difference(learned):
        what = f"the test images have the class {min(unknown)!r}, which the training images lack"
        raise UsageError(what, "rename or remove it", test or place)
    if missing := missing_files(photo.path for photo in photos):
        what = f"{len(missing)} of {len(photos)} images of {place} are missing or no files, such as {missing[0]}"
        raise UsageError(what, "restore or remove them (paths in a CSV file are relative to its folder)", place)
    return sorted(photos, key=lambda photo: (PARTS.index(photo.part), photo.label, photo.path))


def read(place: Path) -> list[Photo]:
    """The images of a CSV file with the columns path, label and perhaps split, or of class folders.

    The class folders are in train/, val/ and test/ if there is a folder train/.
    """
    if place.is_file():
        return read_csv(place)
    if not place.is_dir():
        raise UsageError(f"there is no folder or file {place}", LAYOUT, place)
    folder = OwnImages(place)
    parts = {part: place / part for part in PARTS if (place / part).is_dir()}
    parts = parts if "train" in parts else {"train": place}
    inside = [(part, path, name) for part, path in parts.items() for name in folder.class_folders(path)]
    classes = folder.classes(sorted({name for _, _, name in inside}))
    return [
        Photo(f"{path}/{name}/{file}", classes[name][1], part)
        for part, path, name in inside
        for file in filter(is_image, files_below(path / name))
    ]


def read_csv(file: Path) -> list[Photo]:
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
        photos.append(Photo(str(file.parent / path), label.replace("_", " "), part))
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
