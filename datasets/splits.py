"""Few-shot choices as files: CoOp's pickles and the .jsonl files of 2SFS.

CoOp keeps `split_fewshot/shot_K-seed_S.pkl` in a dataset's folder: {"train": [Datum, ...], "val": [Datum, ...]},
without "val" for ImageNet. 2SFS publishes `shot_K-seed_S_train.jsonl` and `shot_K-seed_S_val.jsonl` with the attributes
of a Datum on each line, the path relative to the folder of all datasets.

A file only chooses among the images of a dataset's own split. No path in it is opened, and nothing in a pickle is
imported or called.
"""

import io
import json
import pickle
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from dassl.data.datasets import Datum

from common.errors import UsageError, one_line
from common.files import write_bytes
from common.names import printable
from common.text import read_bytes, refuse

FOLDER = "split_fewshot"  # in a dataset's folder
MOST = 1 << 22  # bytes of a file: 16 images of each class of ImageNet take 2 MB
DATUM = "dassl.data.datasets.base_dataset", "Datum"
LONGEST = 4096  # letters of a path
FIELDS = ("_impath", "_label", "_domain", "_classname")

Parts = dict[str, list[Datum]]


class Row:
    """The attributes of a pickled `Datum`."""


class DatumUnpickler(pickle.Unpickler):
    """Makes a `Row` of each pickled `Datum`. Nothing that a pickle names is imported."""

    def find_class(self, module: str, name: str) -> type[Row]:
        if (module, name) != DATUM:
            raise ValueError(f"it contains {module}.{name}, which is not loaded")
        return Row


def write(stem: Path, parts: Mapping[str, list[Datum]], folder: Path, data: Path) -> list[Path]:
    """Write a choice in both forms; a file that exists must have the same choice, and stays as it is.

    Args:
        stem: path of the files without their ends: DATASET/split_fewshot/shot_K-seed_S.
        parts: `train` and, if the dataset has validation images, `val`.
        folder, data: as for `read`.

    Returns:
        the files: CoOp's, and one of 2SFS for each part.

    Raises:
        UsageError: a file exists with another choice.
    """
    contents = {Path(f"{stem}.pkl"): pickle.dumps(dict(parts), protocol=4)}
    for part, items in parts.items():
        rows = [vars(item) | {"_impath": below(item.impath, data)} for item in items]
        text = "".join(json.dumps({key: row[key] for key in FIELDS}) + "\n" for row in rows)
        contents[Path(f"{stem}_{part}.jsonl")] = text.encode()
    for file, content in contents.items():
        if file.exists() and read_bytes(file, MOST) != content and not has_choice(file, parts, folder, data):
            raise UsageError(f"{file} exists and has another choice", "move it elsewhere, or use another seed", file)
    for file, content in contents.items():
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            write_bytes(file, content)
    return list(contents)


def has_choice(file: Path, parts: Mapping[str, list[Datum]], folder: Path, data: Path) -> bool:
    """Whether a pickle has these images in this order. The bytes of one choice differ: CoOp writes another protocol."""
    try:
        return file.suffix == ".pkl" and read(file, parts, folder, data)[0] == parts
    except UsageError:
        return False


def read(file: Path, split: Mapping[str, list[Datum]], folder: Path, data: Path) -> tuple[Parts, dict[str, str]]:
    """The images that a file chooses.

    Args:
        file: a pickle, or a .jsonl file; the images for validation are in the file next to `NAME_train.jsonl` that is
            called `NAME_val.jsonl`.
        split: all images for `train`, `val` and `test`.
        folder: the dataset's images, below `data`.
        data: the absolute folder of all datasets.

    Returns:
        the images of each part that the file has, `train` at least, in its order; and `file` and `file_sha256`.

    Raises:
        UsageError: the file is missing, too large or damaged; or it has an image that is not in the split, is in
            another part of it or has another label there, has one twice, or lacks a class.
    """
    content = read_bytes(file, MOST)
    try:
        if file.suffix == ".jsonl":
            rows = {"train": lines(content)}
            other = file.with_name(file.name.replace("_train", "_val"))
            if other != file and other.is_file():
                rows["val"] = lines(read_bytes(other, MOST))
        else:
            rows = DatumUnpickler(io.BytesIO(content)).load()
        if not rows["train"] or not {"train"} <= rows.keys() <= {"train", "val"}:
            raise ValueError("expected images for train, and perhaps for val")
        if file.suffix != ".jsonl":
            rows = {part: [vars(row) for row in items] for part, items in rows.items()}
        if sum(map(len, rows.values())) > sum(map(len, split.values())):
            raise ValueError("it has more rows than the dataset has images")
        chosen = {part: [(row["_impath"], row["_label"]) for row in rows[part]] for part in rows}
        if not all(
            isinstance(path, str) and len(path) <= LONGEST and type(label) is int
            for part in chosen.values()
            for path, label in part
        ):
            raise TypeError("an image has no path, one that is too long, or no label")
    except UsageError:
        raise
    except Exception as error:  # as many kinds as there are ways to damage a pickle
        what = f"{file} is not a few-shot choice of CoOp or 2SFS ({one_line(error)})"
        raise UsageError(what, "replace it, or write one with: python tools/prepare.py splits", file) from error
    places = {below(item.impath, data): (part, item) for part, items in split.items() for item in items}
    parts = {part: [find(file, *row, part, places, folder, data) for row in chosen[part]] for part in chosen}
    for part, items in parts.items():
        if len({item.impath for item in items}) < len(items):
            raise UsageError(f"{file} has an image for {part} twice", "give each image once", file)
        labels = {item.label for item in items}
        missing = [item.classname for item in split[part] if item.label not in labels]
        if missing:
            what = f"{file} has no image for {part} of the class {missing[0]!r}"
            raise UsageError(what, "give each class an image", file)
    return parts, {"file": printable(below(str(file), data)), "file_sha256": sha256(content).hexdigest()}


def lines(content: bytes) -> list[Any]:
    return [json.loads(line, parse_constant=refuse) for line in content.decode().splitlines() if line.strip()]


def below(path: str, data: Path) -> str:
    """The path relative to the folder of the datasets, if it is there."""
    return path.removeprefix(f"{data}/")


def find(
    file: Path, path: str, label: int, part: str, places: Mapping[str, tuple[str, Datum]], folder: Path, data: Path
) -> Datum:
    """The image of a split that a row means. A pickle has absolute paths, perhaps those of another machine: what comes
    before the dataset's folder does not count."""
    name, place = below(path, data), f"{folder.relative_to(data)}/"
    if name.startswith("/") and f"/{place}" in name:
        name = place + name.rpartition(f"/{place}")[2]
    where, item = places.get(name, ("", None))
    shown = printable(one_line(path))
    if item is None:
        raise UsageError(f"{file} has {shown}, which is not an image of the dataset's split in {folder}", where=file)
    if where != part:
        raise UsageError(f"{file} has {shown} for {part}, which is an image for {where}", "remove it", file)
    if item.label != label:
        what = f"{file} gives {shown} the label {label}, and it has {item.label} ({item.classname})"
        raise UsageError(what, "use the dataset's own labels", file)
    return item
