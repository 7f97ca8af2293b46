"""The CSV file with the images whose labels are asked for."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UsageError, check_name
from common.files import write_text
from common.names import as_class_name, csv_cell

from ..read_images import table_rows

COLUMNS = "path", "label", "asked", "guess"
REASON = "reason"  # the column that says why an image has no label
REASONS = "none of these", "skipped"
Line = dict[str, str]


def lines_of(file: Path) -> list[Line]:
    """The lines of an earlier call; none if there is no file.

    Raises:
        UsageError: the file has other columns.
    """
    if not file.exists():
        return []
    rows = [row for _, row in table_rows(file)]
    if not rows or not {"path", "label", "asked"} <= set(rows[0]):
        fault = f"{file} has no columns path, label and asked"
        raise UsageError(fault, "choose another file for --to", file)
    return [{key: row[key] or "" for key in row if key} for row in rows if row["path"]]


def is_open(line: Line) -> bool:
    """Whether an image waits for its label."""
    return not line["label"].strip() and not line.get(REASON, "").strip()


def image_of(line: Line, file: Path) -> str:
    """The absolute path of the image."""
    return os.path.abspath(file.parent / line["path"])


def check_done(lines: Sequence[Line], file: Path) -> None:
    """Raise UsageError for an image that waits for its label."""
    missing = [line["path"] for line in lines if is_open(line)]
    if missing:
        fault = f"{len(missing):,} lines of {file} have no label, such as that of {missing[0]}"
        remedy = f"fill them in, or the column {REASON} ({' or '.join(REASONS)})"
        raise UsageError(fault, f"{remedy}, or delete these lines", file)


def check_labels(lines: Sequence[Line], names: Sequence[str], file: Path) -> None:
    """Raise UsageError for a label that is not a class."""
    known = list(map(as_class_name, names))
    for line in lines:
        label = as_class_name(line["label"])
        if label:
            check_name(label, known, "class", otherwise=f"it is a label in {file}")


def write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the file completely or not at all; columns that the user has added stay."""
    columns = list(dict.fromkeys([*COLUMNS, *(key for line in lines for key in line)]))
    content = io.StringIO()
    writer = csv.DictWriter(content, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: csv_cell(value) for key, value in line.items()})
    write_text(file, content.getvalue())
