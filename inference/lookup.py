"""Image files, found in a bank by their paths or by their checksums."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.files import checksum

from .bank import Bank, BankFiles
from .outputs import facts_in, listing

Row = dict[str, Any]  # of `BankFiles.images`


def rows_of(bank: Bank, paths: Sequence[str], *columns: str) -> dict[str, Row]:
    """The row of each image file, by path.

    It is the row of this path if the file is gone, or as old and as large as it was, as far as its
    part of the bank says that; else the row of its checksum.

    Raises:
        UsageError: an image has no row, or no feature.
    """
    places = {path: os.path.abspath(path) for path in paths}
    by_path = unchanged(bank, set(places.values()))
    keys = {place: place for place in by_path}
    for place in set(places.values()) - by_path:
        if os.path.isfile(place):
            keys[place] = checksum(Path(place))
    wanted = set(keys.values())
    known = {}
    for row in BankFiles(bank.files).images("path", "sha256", *columns):
        for key in (os.path.abspath(row["path"]), row["sha256"]):
            if key in wanted:
                known[key] = row
    rows = {path: known.get(keys.get(place, "")) for path, place in places.items()}
    return checked(rows, bank)


def checked(rows: dict[str, Row | None], bank: Bank) -> dict[str, Row]:
    """The rows, if all of them are there and have a feature."""
    lacking = [path for path, row in rows.items() if row is None]
    if lacking:
        count = f"{len(lacking):,} of {len(rows):,} images"
        fault = f"{bank.folder} lacks {count}, or they have changed since, such as {lacking[0]}"
        raise UsageError(fault, "embed them again", bank.folder)
    found = {path: row for path, row in rows.items() if row is not None}
    for path, row in found.items():
        if row["fault"]:
            fault = f"{bank.folder} has no feature of {path} ({row['fault']})"
            raise UsageError(fault, "replace the image, and embed again", bank.folder)
    return found


def unchanged(bank: Bank, places: set[str]) -> set[str]:
    """Those of the absolute paths that a bank has, and whose files are not known to have changed
    since.
    """
    found = set()
    for file in bank.files:
        paths = [*BankFiles([file])]
        here = places.intersection(map(os.path.abspath, paths))
        if not here:
            continue
        facts = facts_in(file, "embed")
        is_same = isinstance(facts, dict) and facts.get("images") == listing(paths)
        found |= {place for place in here if is_same or not os.path.exists(place)}
    return found
