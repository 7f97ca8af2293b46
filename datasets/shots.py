"""DATASET.NUM_SHOTS as counts: how many training images each class has, which may differ or be
0.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import Datum

from common.errors import UsageError, check_name
from common.names import plain
from common.text import read_json

LARGEST = 1 << 22  # bytes of a file


def read(given: list | str, names: Mapping[int, str], seed: int, title: str) -> dict[int, int]:
    """The number of training images of each class by its label.

    Args:
        given: numbers in the order of the labels; or a JSON file with such a list or with {"class
            name": number}, whose {seed} and {dataset} are those of the run.
        names: of the classes, by label.
        seed, title: of the run, and of its dataset in results.

    Raises UsageError if the file is missing or no JSON, or has not one number from 0 for each
    class.
    """
    where = "DATASET.NUM_SHOTS"
    content: Any = given
    if isinstance(given, str):
        where = given.replace("{seed}", str(seed)).replace("{dataset}", title)
        content = read_json(Path(where).expanduser(), LARGEST)
    labels = sorted(names)
    if isinstance(content, dict):
        content = in_order(content, [names[label] for label in labels], where)
    numbers = isinstance(content, list) and all(
        type(number) is int and number >= 0 for number in content
    )
    if not numbers or len(content) != len(labels) or not any(content):
        fault = f"{where} is not a list of {len(labels)} numbers of images, one for each class"
        raise UsageError(fault, "give numbers from 0, in the order of the labels", where)
    return dict(zip(labels, content, strict=True))


def in_order(by_name: Mapping[str, Any], names: Sequence[str], where: str) -> list[Any]:
    """The numbers of these classes; UsageError for an unknown class, or one without a number."""
    known = {plain(name): number for name, number in by_name.items()}
    for name in known:
        check_name(name, map(plain, names), "class", where)
    for name in names:
        if known.get(plain(name)) is None:
            fault = f"{where} has no number for the class {name!r}"
            raise UsageError(fault, "give each class one; 0: no images", where)
    return [known[plain(name)] for name in names]


def sample(by_label: Mapping[int, list[Datum]], counts: Mapping[int, int]) -> list[Datum]:
    """So many images of each class, drawn by Python's generator in the order of the classes here.
    Raises UsageError if a class has fewer."""
    for label, items in by_label.items():
        if counts[label] > len(items):
            fault = f"DATASET.NUM_SHOTS asks for {counts[label]:,} images of {items[0].classname!r}"
            raise UsageError(fault, f"lower that number: there are {len(items):,}")
    return [
        item for label, items in by_label.items() for item in random.sample(items, counts[label])
    ]
