"""Images of a command, one after another: of files, of folders, and of lists of files."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from common.errors import UsageError, one_line
from common.image_files import is_image, walk_files
from common.start import required_packages

from .addresses import Address, place_of
from .shard_files import REQUIREMENTS

LISTS = ".txt", ".csv", ".parquet"
LONGEST = 1 << 16  # characters of a line, or of a path in Parquet
ROWS = 100  # of Parquet at a time
COLUMNS = "path", "url"


def images_in(paths: Sequence[Path | Address]) -> Iterator[Path | Address]:
    """The files among the paths, the image files below the folders, and the files in the lists.

    A list is text with a path on each line, or CSV or Parquet with a column `path` or `url`; paths
    are addresses, absolute, or relative to its folder.

    Raises:
        UsageError: a list cannot be read, or has no such column.
    """
    for place in paths:
        if isinstance(place, Address):
            yield from place.images()
        elif place.is_dir():
            yield from (place / name for name in walk_files(place) if is_image(name))
        elif place.suffix.lower() in LISTS:
            yield from (place_of(name, place.parent) for name in names_in(place))
        else:
            yield place


def names_in(file: Path) -> Iterator[str]:
    """The paths in a list, which is read part by part."""
    if not file.is_file():
        raise UsageError(f"there is no list {file}", "check its path", file)
    try:
        if file.suffix.lower() == ".parquet":
            yield from names_in_parquet(file)
            return
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as text:
            lines = lines_of(text)
            if file.suffix.lower() == ".csv":
                yield from names_in_csv(lines)
                return
            names = (line.removesuffix("\n") for line in lines)
            yield from (name for name in names if name.strip())
    except (OSError, ValueError, csv.Error) as error:
        fault = f"{file} is not a list of images ({one_line(error)})"
        raise UsageError(fault, f"give one with the column {COLUMNS[0]}, or text", file) from error


def lines_of(text: TextIO) -> Iterator[str]:
    while line := text.readline(LONGEST):
        if len(line) == LONGEST:
            raise ValueError(f"a line has more than {LONGEST:,} characters")
        yield line


def names_in_csv(lines: Iterable[str]) -> Iterator[str]:
    reader = csv.DictReader(lines)
    column = column_of(reader.fieldnames or ())
    return (row[column] or "" for row in reader)


def names_in_parquet(file: Path) -> Iterator[str]:
    with required_packages(REQUIREMENTS):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        with ParquetFile(file, page_checksum_verification=True) as table:
            column = column_of(table.schema_arrow.names)
            for part in table.iter_batches(ROWS, columns=[column]):
                for name in part[column].to_pylist():
                    yield checked(str(name or ""))
    except ArrowException as error:
        raise ValueError(str(error)) from error


def checked(name: str) -> str:
    if len(name) >= LONGEST:
        raise ValueError(f"a path has more than {LONGEST:,} characters")
    return name


def column_of(names: Sequence[str]) -> str:
    """The column with the images; ValueError if there is none."""
    found = next((name for name in COLUMNS if name in names), None)
    if found is None:
        raise ValueError(f"it has no column {' or '.join(COLUMNS)}")
    return found
