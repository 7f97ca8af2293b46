"""Few-shot choices as CoOp's pickles.

CoOp keeps `split_fewshot/shot_K-seed_S.pkl` in a dataset's folder: {"train": [Datum, ...], "val":
[Datum, ...]}, without "val" for ImageNet.

A file only chooses among the images of a dataset's own split. No path in it is opened, and a pickle
can name no class but Datum.
"""

import io
import pickle
from collections.abc import Mapping
from hashlib import sha256
from itertools import chain
from pathlib import Path

from dassl.data.datasets import Datum

from common.errors import UsageError, one_line
from common.names import printable
from common.text import read_bytes

FOLDER = "split_fewshot"  # in a dataset's folder
MOST = 1 << 22  # bytes of a file: 16 images of each class of ImageNet take 2 MB
DATUM = "dassl.data.datasets.base_dataset", "Datum"

Parts = dict[str, list[Datum]]


class PickledDatum:
    """The attributes of a pickled `Datum`."""


class DatumUnpickler(pickle.Unpickler):
    """Python's unpickler without any class or function but `Datum`."""

    def find_class(self, module: str, name: str) -> type[PickledDatum]:
        if (module, name) != DATUM:
            raise ValueError(f"it contains {module}.{name}, which is not loaded")
        return PickledDatum


def read_split(
    file: Path, split: Mapping[str, list[Datum]], folder: Path, data: Path
) -> tuple[Parts, dict[str, str]]:
    """The images that a file chooses.

    Args:
        file: a pickle.
        split: all images for `train`, `val` and `test`.
        folder: the dataset's images, below `data`.
        data: the absolute folder of all datasets.

    Returns:
        the images of each part that the file has, `train` at least, in its order; and `file` and
        `file_sha256`.

    Raises UsageError if the file is missing, too large or damaged; or it has an image that is not
    in the split, is in another part of it or has another label there, has one twice, or lacks a
    class.
    """
    content = read_bytes(file, MOST)
    places = places_of(split, data)
    parts: Parts = {}
    for part, pairs in read_pairs(file, content, sum(map(len, split.values()))).items():
        parts[part] = []
        for pair in pairs:
            place = in_dataset(pair[0], folder, data)
            parts[part].append(chosen_image(file, part, pair, places.get(place)))
        check_part(file, part, parts[part], split[part])
    facts = {"file": printable(below(str(file), data)), "file_sha256": sha256(content).hexdigest()}
    return parts, facts


def places_of(split: Mapping[str, list[Datum]], data: Path) -> dict[str, tuple[str, Datum]]:
    """The images of a split with their parts, by their paths below the folder of the datasets."""
    return {
        below(item.impath, data): (part, item) for part, items in split.items() for item in items
    }


def chosen_image(
    file: Path, part: str, pair: tuple[str, int], found: tuple[str, Datum] | None
) -> Datum:
    """The image that a file chooses by path and label, as it was `found` in the split; UsageError
    if it is not there, or in another part or with another label.
    """
    path, label = pair
    if found and (found[0], found[1].label) == (part, label):
        return found[1]
    fact = f"for {found[0]} with the label {found[1].label}" if found else "without that image"
    chosen = f"{printable(one_line(path))} for {part} with the label {label}"
    fault = f"{file} has {chosen}, the split {fact}"
    raise UsageError(fault, "give images and labels of the dataset's own split", file)


def read_pairs(file: Path, content: bytes, most: int) -> dict[str, list[tuple[str, int]]]:
    """Path and label of each image of each part, `most` in all; UsageError for another content."""
    try:
        rows = read_pickle(content)
        if sum(map(len, rows.values())) > most:
            raise ValueError("it has more rows than the dataset has images")
        chosen = {part: [(row["_impath"], row["_label"]) for row in rows[part]] for part in rows}
        if not chosen["train"] or not {"train"} <= chosen.keys() <= {"train", "val"}:
            raise ValueError("expected images for train, and perhaps for val")
        for path, label in chain(*chosen.values()):
            if type(path) is not str or type(label) is not int:
                raise TypeError("an image has no path or no label")
    except Exception as error:  # as many kinds as there are ways to damage a pickle
        fault = f"{file} is not a few-shot choice of CoOp ({one_line(error)})"
        raise UsageError(fault, "give a .pkl that CoOp's code wrote", file) from error
    return chosen


def read_pickle(content: bytes) -> dict[str, list[dict]]:
    """The rows of each part of CoOp's file."""
    pickled = DatumUnpickler(io.BytesIO(content)).load()
    return {part: [vars(row) for row in items] for part, items in pickled.items()}


def check_part(file: Path, part: str, items: list[Datum], every: list[Datum]) -> None:
    """Raise UsageError if a part has an image twice, or none of a class of `every` image."""
    if len({item.impath for item in items}) < len(items):
        raise UsageError(f"{file} has an image for {part} twice", "give each image once", file)
    labels = {item.label for item in items}
    missing = [item.classname for item in every if item.label not in labels]
    if missing:
        fault = f"{file} has no image for {part} of the class {missing[0]!r}"
        raise UsageError(fault, "give each class an image", file)


def below(path: str, data: Path) -> str:
    """The path relative to the folder of the datasets, if it is there."""
    return path.removeprefix(f"{data}/")


def in_dataset(path: str, folder: Path, data: Path) -> str:
    """The path relative to the folder of the datasets. A pickle has absolute paths, perhaps those
    of another machine: what comes before the dataset's folder does not count."""
    name = below(path, data)
    place = f"{folder.relative_to(data)}/"
    return (
        place + name.rpartition(f"/{place}")[2]
        if name.startswith("/") and f"/{place}" in name
        else name
    )
