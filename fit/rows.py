"""Labelled images, and the files whose rows name them."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.names import of_csv_cell, plain, printable
from common.text import read_text
from datasets.base import missing_files
from datasets.image_folder import PARTS
from inference.addresses import place_of

METADATA = "metadata.csv", "metadata.jsonl"
ASKED = "chosen", "random"
Row = Mapping[str, str | None]  # of a file, by its columns


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


def check_inside(rows: Sequence[tuple[int, Row]], file: Path) -> None:
    """Raise UsageError for an image outside the folder of a file, which may be a stranger's."""
    for line, row in rows:
        name = Path(row.get("file_name") or "")
        if name.is_absolute() or ".." in name.parts:
            fault = f"line {line} of {file} leads out of its folder"
            raise UsageError(fault, "give paths inside of it", file)


def rows_of(file: Path) -> list[tuple[int, Row]]:
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


def csv_row(row: Mapping[str, Any]) -> Row:
    return {
        key: of_csv_cell(value) if isinstance(value, str) else value for key, value in row.items()
    }


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
        fault = (
            f"{len(missing)} of {len(photos)} images of {file} are missing or no files, such as "
            f"{missing[0]}"
        )
        raise UsageError(
            fault, "restore or remove them (paths are relative to the folder of the file)", file
        )
    return photos


def photos_in_rows(rows: Sequence[tuple[int, Row]], file: Path, part: str = "") -> list[Photo]:
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


def photo_of(row: Row, column: str, part: str, line: int, file: Path) -> Photo:
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
    place = str(place_of(path, file.parent))
    return Photo(place, plain(label), part, below=below, group=group, asked=asked)
