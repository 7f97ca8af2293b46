"""The images of a fit, as they are found in folders, a CSV file or a bank."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.image_files import files_below, is_image, kinds
from common.names import as_class_name, check_known_names, of_csv_cell, plain, printable
from common.text import read_text
from datasets.base import missing_files
from datasets.image_folder import PARTS, OwnImages
from inference.addresses import Address, place_of
from inference.bank import Bank, BankFiles, is_bank
from inference.sources import images_in
from inference.tars import is_tar

METADATA = "metadata.csv", "metadata.jsonl"
ASKED = "chosen", "random"
TableRow = Mapping[str, str | None]  # of a file, by its columns


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
    group_number: int | None = None  # of its group, once it was found
    bank: str = ""  # the folder with its feature, if the image is not read
    asked: str = ""  # why `tools/label.py` asked for its label: one of ASKED


def table_rows(file: Path) -> list[tuple[int, TableRow]]:
    """The rows of a CSV file, or of a file with a JSON object on each line, with their lines."""
    # Not `splitlines`: a name may have any other letter that ends a line, such as U+2028
    lines = io.StringIO(read_text(file), newline="")
    if file.suffix == ".jsonl":
        return [(number, json_row(line, number, file)) for number, line in enumerate(lines, 1)]
    rows = csv.DictReader(lines, strict=True)
    try:
        found = [(rows.line_num, csv_row(row)) for row in rows]
        return found or [(1, dict.fromkeys(rows.fieldnames or ()))]
    except csv.Error as error:  # such as a quotation mark that nothing closes
        fault = f"{file} is not a CSV file after line {rows.line_num} ({error})"
        raise UsageError(
            fault, "fix the next line: perhaps its quotation mark is not closed", file
        ) from error


def csv_row(row: Mapping[str, Any]) -> TableRow:
    return {
        key: of_csv_cell(value) if isinstance(value, str) else value for key, value in row.items()
    }


def json_row(line: str, number: int, file: Path) -> TableRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UsageError(f"line {number} of {file} is not a JSON object", "fix that line", file)
    return {key: str(value) for key, value in row.items() if isinstance(value, str | int)}


def photos_in_table(
    rows: Sequence[tuple[int, TableRow]], file: Path, part: str = ""
) -> list[Photo]:
    """The images in the rows of a file.

    Args:
        part: of the images; by default what the column split says, or in a file of METADATA the
            first folder of the path.

    Raises:
        UsageError: columns or values are missing or wrong, or images are missing.
    """
    photos = photos_in_rows(rows, file, part)
    if missing := missing_files(photo.path for photo in photos):
        fault = (
            f"{len(missing)} of {len(photos)} images of {file} are missing or no files, such as "
            f"{missing[0]}"
        )
        raise UsageError(
            fault, "restore or remove them (paths are relative to the folder of the file)", file
        )
    return photos


def photos_in_rows(rows: Sequence[tuple[int, TableRow]], file: Path, part: str = "") -> list[Photo]:
    """`photos_of`, whether the images are there or not."""
    columns = rows[0][1] if rows else {}
    column = "path" if "path" in columns else "file_name"
    if not {column, "label"} <= set(columns):
        fault = f"{file} has the columns {', '.join(map(printable, columns)) or 'of no table'}"
        raise UsageError(fault, "give it the columns path and label (and split, if you like)", file)
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


def photo_of(row: TableRow, column: str, part: str, line: int, file: Path) -> Photo:
    """The image of a row, whose path is in a column."""
    path = row.get(column) or ""
    label = (row.get("label") or "").strip()
    top, _, below = path.partition("/")
    if not part and file.name in METADATA and top in PARTS:
        part = top
    part = part or row.get("split") or "train"
    if not path or not label or part not in PARTS:
        fault = (
            f"line {line} of {file} has no path, no label or another split than {', '.join(PARTS)}"
        )
        raise UsageError(fault, "fix that line", file)
    group = (row.get("group") or "").strip()
    if "group" in row and not group:
        fault = f"line {line} of {file} has no group"
        raise UsageError(fault, "give each line one, or remove the column", file)
    asked = (row.get("asked") or "").strip()
    if asked and asked not in ASKED:
        fault = f"line {line} of {file} has {asked[:80]!r} in the column asked"
        raise UsageError(fault, f"write {' or '.join(ASKED)}, or nothing", file)
    below = below if plain(top) == plain(label) else path
    path = str(place_of(path, file.parent))
    return Photo(path, plain(label), part, below=below, group=group, asked=asked)


FOLDER = "folder"  # of --group-by
LAYOUT = (
    "give a folder with one folder of images for each class, or a CSV file with the columns "
    "path and label"
)


def find(
    place: Path,
    test: Path | None = None,
    group_by: str = "",
    labels: Path | None = None,
) -> list[Photo]:
    """The labelled images of a folder or a CSV file, and the test images of another one, sorted by
    class and path.

    Args:
        group_by: as for `named`; empty if only a column may name groups.
        labels: a CSV file with path and label for the images of a bank.

    Raises:
        UsageError: there are fewer than two classes with images, an image of a CSV file is missing,
            a class has only test images, or the names of groups cannot be used.
    """
    photos = read_photos(place, labels)
    if test:
        photos = [photo for photo in photos if photo.part != "test"]
        photos += [replace(photo, part="test") for photo in read_photos(test, labels)]
    photos = [replace(photo, label=as_class_name(photo.label)) for photo in photos]
    learned = learned_classes(photos)
    if len(learned) < 2:
        fault = f"{place} has images of {len(learned)} class{'' if len(learned) == 1 else 'es'}"
        raise UsageError(fault, f"a classifier needs two: {LAYOUT}", place)
    check_known_names(sorted(learned), place)
    if unknown := {photo.label for photo in photos}.difference(learned):
        fault = f"the test images have the class {min(unknown)!r}, which the training images lack"
        raise UsageError(fault, "rename or remove it", test or place)
    if group_by:
        photos = named(photos, group_by, place)
    return sorted(photos, key=lambda photo: (PARTS.index(photo.part), photo.label, photo.path))


def learned_classes(photos: Iterable[Photo]) -> set[str]:
    """Those with training images."""
    return {photo.label for photo in photos if photo.part != "test"}


def read_photos(place: Path, labels: Path | None = None) -> list[Photo]:
    """The images of a bank, of a CSV file with the columns path, label and perhaps split, of a
    folder with metadata of Hugging Face, or of class folders.

    The class folders are in train/, val/ and test/ if there is a folder train/.
    """
    if is_bank(place):
        return photos_in(place, labels)
    if labels:
        raise UsageError(f"{place} is not a bank", "leave out --labels", place)
    if place.is_file():
        return photos_in_table(table_rows(place), place)
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
        return [of_bank(Photo(row["path"], ""), row, place) for row in rows_in(place)]
    found = [*images_in([place])]
    if any(isinstance(one, Address) for one in found):
        raise UsageError(
            f"{place} has addresses", "make a bank of it: python tools/embed.py", place
        )
    return [Photo(file, "") for file in dict.fromkeys(map(str, found))]


def read_folders(place: Path) -> list[Photo]:
    """The images of class folders."""
    folder = OwnImages(place)
    folder.remedy = f"{LAYOUT}; python tools/label.py helps to label images"
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
        files = f"files that are not images: {kinds(not_read)}, such as {min(not_read)}"
        print(printable(f"Left out: {files}"))
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
        rows = table_rows(file)
        if not {"file_name", "label"} <= set(rows[0][1] if rows else ()):
            print(printable(f"Not read: {file} has no columns file_name and label"))
            continue
        for line, row in rows:  # the file may be a stranger's
            name = Path(row.get("file_name") or "")
            if name.is_absolute() or ".." in name.parts:
                fault = f"line {line} of {file} leads out of its folder"
                raise UsageError(fault, "give paths inside of it", file)
        photos += photos_in_table(rows, file, part)
        if not part:
            break
    return photos


def named_by_folder(photos: Sequence[Photo], place: Path) -> list[Photo]:
    """The photos with the folder below that of the class as their group."""
    below = [photo.below.rpartition("/")[0] for photo in photos]
    if not any(below):
        fault = f"no image of {place} is in a folder below that of its class"
        remedy = f"leave out --group-by {FOLDER}, or give a regular expression"
        raise UsageError(fault, remedy, place)
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
        UsageError: the expression is invalid, captures nothing or two things, or does not match a
            path; or there is no folder below that of a class.
    """
    if by == FOLDER:
        return named_by_folder(photos, place)
    try:
        pattern = re.compile(by)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"--group-by {by!r} is not a regular expression ({error})", "correct it"
        ) from error
    if pattern.groups != 1:
        fault = f"--group-by {by!r} has {pattern.groups} captures"
        raise UsageError(
            fault, "put the part of the path that names the group into one pair of parentheses"
        )
    matches = [(photo, pattern.search(photo.path)) for photo in photos]
    for photo, match in matches:
        if not match or not match[1]:
            fault = f"--group-by {by!r} finds no group in {printable(photo.path)}"
            raise UsageError(fault, "change the expression so that it matches each path")
    return [replace(photo, group=match[1]) for photo, match in matches if match]


def check_named(photos: Sequence[Photo], place: Path) -> None:
    """Raise UsageError if the user names a single group, from which nothing could be held out."""
    groups = {photo.group for photo in photos if photo.part != "test"}
    if len(groups) == 1 and groups != {""}:
        fault = f"all training images of {place} are of the group {printable(min(groups))!r}"
        raise UsageError(fault, "name two groups or more, or leave out the groups", place)


COLUMNS = "path", "sha256", "label", "pixels_sha256"
MOST_FAULTS = 5  # that are named


def labelled(rows: Sequence[Mapping[str, Any]], labels: Path | None) -> list[Photo | None]:
    """The image of each row with its class; None if nothing says it."""
    if labels:
        known = {
            os.path.abspath(one.path): one for one in photos_in_rows(table_rows(labels), labels)
        }
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


def notes_of(damaged: Mapping[str, str]) -> list[str]:
    """Some of the faults, for the user."""
    return [f"Left out: {fault}" for fault in list(damaged.values())[:MOST_FAULTS]]
