"""The images of a fit, as they are found in folders or a CSV file."""

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import UsageError
from common.names import check_known_names, plain, printable
from common.text import read_text
from datasets.base import missing_files
from datasets.folders import files_below, is_image, kinds
from datasets.image_folder import PARTS
from datasets.preparing.own_images import OwnImages
from inference.bank import is_bank
from inference.sources import images_in
from inference.tars import is_tar

FOLDER = "folder"  # of --group-by
METADATA = "metadata.csv", "metadata.jsonl"
ASKED = "chosen", "random"
Row = Mapping[str, str | None]  # of a file, by its columns
LAYOUT = (
    "give a folder with one folder of images for each class, or a CSV file with the columns "
    "path and label"
)


@dataclass(frozen=True)
class Photo:
    """An image file and the name of its class."""

    path: str
    label: str
    part: str = "train"  # one of PARTS
    sha256: str = ""  # of the file
    pixels_sha256: str = ""  # of its decoded pixels, once it was read
    below: str = ""  # its path below the folder of its class
    group: str = ""  # the name that the user gives its group
    scene: int | None = None  # the number of its group, once it was found
    bank: str = ""  # the folder with its feature, if the image is not read
    asked: str = ""  # why `tools/label.py` asked for its label: one of ASKED


def find(
    place: Path,
    test: Path | None = None,
    group_by: str = "",
    labels: Path | None = None,
    classes: Sequence[str] = (),
) -> list[Photo]:
    """The labelled images of a folder or a CSV file, and the test images of another one, sorted by
    class and path.

    Args:
        group_by: as for `named`; empty if only a column may name groups.
        labels: a CSV file with path and label for the images of a bank.
        classes: those that may have no images to learn from.

    Raises:
        UsageError: there are fewer than two classes with images, an image of a CSV file is missing,
            a class has only test images, or the names of groups cannot be used.
    """
    photos = read(place, labels)
    if test:
        photos = [photo for photo in photos if photo.part != "test"]
        photos += [replace(photo, part="test") for photo in read(test, labels)]
    photos = [replace(photo, label=as_class_name(photo.label)) for photo in photos]
    learned = learned_classes(photos)
    if len(learned) < 2:
        what = f"{place} has images of {len(learned)} class{'' if len(learned) == 1 else 'es'}"
        raise UsageError(what, f"a classifier needs two: {LAYOUT}", place)
    check_known_names(sorted({*learned, *classes}), place)
    if unknown := {photo.label for photo in photos}.difference(learned, classes):
        what = f"the test images have the class {min(unknown)!r}, which the training images lack"
        raise UsageError(what, "rename or remove it", test or place)
    if group_by:
        photos = named(photos, group_by, place)
    return sorted(photos, key=lambda photo: (PARTS.index(photo.part), photo.label, photo.path))


def learned_classes(photos: Iterable[Photo]) -> set[str]:
    """Those with training images."""
    return {photo.label for photo in photos if photo.part != "test"}


def as_class_name(label: str) -> str:
    """A label as a model has its class names."""
    return " ".join(plain(label).split())


def read(place: Path, labels: Path | None = None) -> list[Photo]:
    """The images of a bank, of a CSV file with the columns path, label and perhaps split, of a
    folder with metadata of Hugging Face, or of class folders.

    The class folders are in train/, val/ and test/ if there is a folder train/.
    """
    if is_bank(place):
        from .banked import photos_in  # which needs this module

        return photos_in(place, labels)
    if labels:
        raise UsageError(f"{place} is not a bank", "leave out --labels", place)
    if place.is_file():
        return photos_of(rows_of(place), place)
    if not place.is_dir():
        raise UsageError(f"there is no folder or file {place}", LAYOUT, place)
    return read_metadata(place) or read_folders(place)


def unlabelled_in(place: Path) -> list[Photo]:
    """The images of a folder, a list or a bank without their labels, each once.

    Raises:
        UsageError: there is nothing, or a tar.
    """
    if is_tar(place):
        raise UsageError(f"{place} is a tar", "make a bank of it: python tools/embed.py", place)
    if not place.exists():
        raise UsageError(f"there is no folder, list or bank {place}", "check its path", place)
    if is_bank(place):
        from .banked import unlabelled_in_bank  # which needs this module

        return unlabelled_in_bank(place)
    return [Photo(file, "") for file in dict.fromkeys(map(str, images_in([place])))]


def read_folders(place: Path) -> list[Photo]:
    """The images of class folders."""
    folder = OwnImages(place)
    names = folder.class_folders(place)
    parts = {part: place / part for part in PARTS if part in names}
    if "train" in parts:
        folder.name_others(names, parts)
    else:
        parts = {"train": place}
        folder.check_classes(names)
    for name in sorted(os.listdir(place)):
        if not os.path.exists(place / name):
            print(printable(f"Left out: {place / name} is a link that leads nowhere"))
    inside = [
        (part, path / name) for part, path in parts.items() for name in folder.class_folders(path)
    ]
    classes = folder.classes(sorted({path.name for _, path in inside}))
    photos = []
    not_read: list[str] = []
    for part, path in inside:
        photos += photos_below(path, classes[path.name][1], part, not_read)
    if not_read:
        what = f"files that are not images: {kinds(not_read)}, such as {min(not_read)}"
        print(printable(f"Left out: {what}"))
    return photos


def photos_below(folder: Path, label: str, part: str, not_read: list[str]) -> list[Photo]:
    """The images of a class; other files are added to those that are not read."""
    files = files_below(folder)
    images = [file for file in files if is_image(file)]
    not_read += [f"{folder}/{file}" for file in files if not is_image(file)]
    if not images:
        print(printable(f"Left out: no images in {folder}, but {kinds(files)}"))
    return [Photo(f"{folder}/{file}", label, part, below=file) for file in images]


def read_metadata(folder: Path) -> list[Photo]:
    """The images of metadata.csv or metadata.jsonl with file_name and label, as Hugging Face's
    ImageFolder has them, in the folder or in train/, val/ and test/ of it; empty without such a
    file.
    """
    places = {"": folder, **{part: folder / part for part in PARTS}}
    photos = []
    for part, place in places.items():
        file = next((place / name for name in METADATA if (place / name).is_file()), None)
        if file is None:
            continue
        rows = rows_of(file)
        if not {"file_name", "label"} <= set(rows[0][1] if rows else ()):
            print(printable(f"Not read: {file} has no columns file_name and label"))
            continue
        check_inside(rows, file)
        photos += photos_of(rows, file, part)
        if not part:
            break
    return photos


def check_inside(rows: Sequence[tuple[int, Row]], file: Path) -> None:
    """Raise UsageError for an image outside the folder of a file, which may be a stranger's."""
    for line, row in rows:
        name = Path(row.get("file_name") or "")
        if name.is_absolute() or ".." in name.parts:
            what = f"line {line} of {file} leads out of its folder"
            raise UsageError(what, "give paths inside of it", file)


def rows_of(file: Path) -> list[tuple[int, Row]]:
    """The rows of a CSV file, or of a file with a JSON object on each line, with their lines."""
    lines = read_text(file).splitlines()
    if file.suffix == ".jsonl":
        return [(number, json_row(line, number, file)) for number, line in enumerate(lines, 1)]
    rows = csv.DictReader(lines, strict=True)
    try:
        return [(rows.line_num, row) for row in rows] or [(1, dict.fromkeys(rows.fieldnames or ()))]
    except csv.Error as error:  # such as a quotation mark that nothing closes
        what = f"{file} is not a CSV file after line {rows.line_num} ({error})"
        raise UsageError(
            what, "fix the next line: perhaps its quotation mark is not closed", file
        ) from error


def json_row(line: str, number: int, file: Path) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UsageError(f"line {number} of {file} is not a JSON object", "fix that line", file)
    return {key: str(value) for key, value in row.items() if isinstance(value, str | int)}


def photos_of(rows: Sequence[tuple[int, Row]], file: Path, part: str = "") -> list[Photo]:
    """The images in the rows of a file.

    Args:
        part: of the images; by default what the column split says, or in a file of METADATA the
            first folder of the path.

    Raises:
        UsageError: columns or values are missing or wrong, or images are missing.
    """
    photos = photos_in_rows(rows, file, part)
    if missing := missing_files(photo.path for photo in photos):
        what = (
            f"{len(missing)} of {len(photos)} images of {file} are missing or no files, such as "
            f"{missing[0]}"
        )
        raise UsageError(
            what, "restore or remove them (paths are relative to the folder of the file)", file
        )
    return photos


def photos_in_rows(rows: Sequence[tuple[int, Row]], file: Path, part: str = "") -> list[Photo]:
    """`photos_of`, whether the images are there or not."""
    columns = rows[0][1] if rows else {}
    column = "path" if "path" in columns else "file_name"
    if not {column, "label"} <= set(columns):
        what = f"{file} has the columns {', '.join(map(printable, columns)) or 'of no table'}"
        raise UsageError(what, "give it the columns path and label (and split, if you like)", file)
    if not any(columns.values()):
        raise UsageError(f"{file} has no image", "give each its path and its label", file)
    if "asked" in columns:
        labelled = [(line, row) for line, row in rows if (row.get("label") or "").strip()]
        if len(labelled) < len(rows):
            print(
                printable(
                    f"Left out: {len(rows) - len(labelled):,} lines of {file} without a label"
                )
            )
        rows = labelled
    return [photo_of(row, column, part, line, file) for line, row in rows]


def photo_of(row: Row, column: str, part: str, line: int, file: Path) -> Photo:
    """The image of a row, whose path is in a column."""
    path = row.get(column) or ""
    label = (row.get("label") or "").strip()
    top, _, below = path.partition("/")
    if not part and file.name in METADATA and top in PARTS:
        part = top
    part = part or row.get("split") or "train"
    if not path or not label or part not in PARTS:
        what = (
            f"line {line} of {file} has no path, no label or another split than {', '.join(PARTS)}"
        )
        raise UsageError(what, "fix that line", file)
    group = (row.get("group") or "").strip()
    if "group" in row and not group:
        what = f"line {line} of {file} has no group"
        raise UsageError(what, "give each line one, or remove the column", file)
    asked = (row.get("asked") or "").strip()
    if asked and asked not in ASKED:
        what = f"line {line} of {file} has {asked[:80]!r} in the column asked"
        raise UsageError(what, f"write {' or '.join(ASKED)}, or nothing", file)
    below = below if plain(top) == plain(label) else path
    return Photo(str(file.parent / path), plain(label), part, below=below, group=group, asked=asked)


def named_by_folder(photos: Sequence[Photo], place: Path) -> list[Photo]:
    """The photos with the folder below that of the class as their group."""
    below = [photo.below.rpartition("/")[0] for photo in photos]
    if not any(below):
        what = f"no image of {place} is in a folder below that of its class"
        remedy = f"leave out --group-by {FOLDER}, or give a regular expression"
        raise UsageError(what, remedy, place)
    return [
        replace(photo, group=f"{photo.label}/{folder}" if folder else "")
        for photo, folder in zip(photos, below, strict=True)
    ]


def named(photos: Sequence[Photo], by: str, place: Path) -> list[Photo]:
    """The photos with the groups that the user names.

    Args:
        by: `folder`, the folder below that of the class; or a regular expression, whose capture in
            the path is the group.
        place: the folder or the CSV file of the photos.

    Raises:
        UsageError: the expression is none, captures nothing or two things, or does not match a
            path; or there is no folder below that of a class.
    """
    if by == FOLDER:
        return named_by_folder(photos, place)
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise UsageError(
            f"--group-by {by!r} is not a regular expression ({error})", "correct it"
        ) from error
    if pattern.groups != 1:
        what = f"--group-by {by!r} has {pattern.groups} captures"
        raise UsageError(
            what, "put the part of the path that names the group into one pair of parentheses"
        )
    matches = [(photo, pattern.search(photo.path)) for photo in photos]
    for photo, match in matches:
        if not match or not match[1]:
            what = f"--group-by {by!r} finds no group in {printable(photo.path)}"
            raise UsageError(what, "change the expression so that it matches each path")
    return [replace(photo, group=match[1]) for photo, match in matches if match]


def check_named(photos: Sequence[Photo], place: Path) -> None:
    """Raise UsageError if the user names a single group, from which nothing could be held out."""
    groups = {photo.group for photo in photos if photo.part != "test"}
    if len(groups) == 1 and groups != {""}:
        what = f"all training images of {place} are of the group {printable(min(groups))!r}"
        raise UsageError(what, "name two groups or more, or leave out the groups", place)
