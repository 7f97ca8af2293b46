"""A bank: the folder that `tools/embed.py` has written, which is read in place of its images."""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import UsageError, one_line
from common.lock import LOCK, is_locked
from common.text import read_json

from .shard_files import opened, parts_of

if TYPE_CHECKING:
    from .classifier import PromptedClassifier
    from .head_only import HeadOnly
    from .predictions import Predictions

RECORD = "_embed.json"
COUNT = "shards"  # in it, once all are known
MADE = "made"  # in it: by which version of this project
FORM = 2  # of the files; earlier ones had no column `tower`
TEXT = "(large_)?string"
# The types of the columns, as pyarrow writes them; files may have other columns
TYPES = dict.fromkeys(("path", "sha256", "error", "pixels_sha256"), TEXT)
TYPES |= dict.fromkeys(("width", "height"), "int32")
TYPES |= {"tower": r"fixed_size_list<\w+: (halffloat|float)>\[[1-9]\d{0,5}\]"}
TYPES |= {"camera": "uint64", "second": "double"}
OPTIONAL = {"pixels_sha256", "signature", "camera", "second"}
FILLED = {"path", "sha256", "error", "pixels_sha256", "camera", "second"}
DIGEST = "^([0-9a-f]{64})?$"


def is_bank(path: Any) -> bool:
    return isinstance(path, Path) and (path / RECORD).is_file()


class Rows(NamedTuple):
    """Some rows of a bank.

    Attributes:
        columns: the values of each column that was asked for.
        faults: why an image has no feature, or an empty text.
        before: (rows without a fault, width), the features of their towers.
    """

    columns: dict[str, list[Any]]
    faults: list[str]
    before: NDArray[np.float32]


class BankFiles:
    """Some files of a bank. Its items are the paths of the images."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __len__(self) -> int:
        rows = 0
        for file in self.files:
            with checked(file) as table:
                rows += table.metadata.num_rows
        return rows

    def __iter__(self) -> Iterator[str]:
        for part in self.parts("path"):
            yield from part["path"].to_pylist()

    def parts(self, *columns: str) -> Iterator[Any]:
        """At most ROWS rows at a time, with those of the columns that there are."""
        for file in self.files:
            with checked(file) as table:
                yield from checked_parts(table, columns)

    def rows(self, *columns: str) -> Iterator[Rows]:
        """At most ROWS rows at a time, with those of the columns that there are."""
        for file in self.files:
            with checked(file) as table:
                for part in checked_parts(table, (*columns, "error", "tower")):
                    known = [name for name in columns if name in part.schema.names]
                    values = {name: part[name].to_pylist() for name in known}
                    yield Rows(values, part["error"].to_pylist(), before_of(part["tower"]))

    def images(self, *columns: str) -> Iterator[dict[str, Any]]:
        """Each image with these columns, its `fault`, and what its tower computed `before` the
        projection, None if there is a fault.
        """
        for part in self.rows(*columns):
            features = iter(part.before)
            for place, fault in enumerate(part.faults):
                row = {name: values[place] for name, values in part.columns.items()}
                yield row | {"fault": fault, "before": None if fault else next(features)}


@contextmanager
def checked(file: Path) -> Iterator[Any]:
    """A file of a bank; UsageError if it is damaged, or its columns are not those of a bank."""
    try:
        with opened(file) as table:
            check_types(table.schema_arrow)
            yield table
    except UsageError as error:
        raise UsageError(error.fault, "delete it, and embed again", file) from error


def check_types(schema: Any) -> None:
    """Raise ValueError if a column is missing or of another type."""
    from datasets.image_facts import SHAPE  # here, as it loads all datasets

    types = {field.name: str(field.type).replace(" not null", "") for field in schema}
    signature = rf"fixed_size_list<\w+: int8>\[{math.prod(SHAPE)}\]"
    for name, kind in (*TYPES.items(), ("signature", signature)):
        found = types.get(name, "" if name in OPTIONAL else "missing")
        if found and not re.fullmatch(kind, found):
            raise ValueError(f"its column {name} is {one_line(found)}")


def checked_parts(table: Any, columns: Sequence[str]) -> Iterator[Any]:
    """At most ROWS rows at a time, which are checked."""
    known = [name for name in columns if name in table.schema_arrow.names]
    for part in parts_of(table, known):
        check_values(part)
        yield part


def check_values(part: Any) -> None:
    """Raise ValueError if a row has no path or no checksum, or if it has both a fault and a
    feature, or neither.
    """
    from pyarrow import compute

    names = {*part.schema.names}
    for name in FILLED & names:
        if part[name].null_count:
            raise ValueError(f"its column {name} has empty values")
    for name in {"sha256", "pixels_sha256"} & names:
        if not compute.all(compute.match_substring_regex(part[name], DIGEST)).as_py():
            raise ValueError(f"its column {name} has a value that is no checksum")
    if "tower" in names:
        is_bad = compute.not_equal(part["error"], "")
        for name in {"tower", "signature"} & names:
            if not part[name].is_null().equals(is_bad):
                raise ValueError(f"its column {name} is not of the images without an error")


def before_of(column: Any) -> NDArray[np.float32]:
    """(rows with a feature, width), fp32: a column of features."""
    width = column.type.list_size
    numbers = column.flatten().to_numpy(zero_copy_only=False)
    before = numbers.reshape(-1, width).astype(np.float32)
    if not np.isfinite(before).all():
        raise ValueError("a feature is not finite")
    return before


def differing(values: Any, expected: dict[str, Any]) -> str:
    """The keys with other values than these, such as `EXIF_ORIENTATION True, not False`."""
    known = values if isinstance(values, dict) else {}
    texts = [
        f"{key} {known.get(key)}, not {value}"
        for key, value in expected.items()
        if known.get(key) != value
    ]
    return "; ".join(texts)


class Bank:
    """A bank, whose files are opened later.

    Attributes:
        facts: what its features depend on.
        files: of its shards, in their order.

    Raises:
        UsageError: it has no features for heads, is not finished, or is being written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts = read_json(folder / RECORD)
        self.files = sorted(folder.glob("[0-9]*.parquet"))
        if not isinstance(self.facts, dict) or self.facts.get("form") != FORM:
            fault = f"{folder} has no features for heads"
            remedy = "embed the images again, by a model with CLIP's own tower, as parquet"
            raise UsageError(fault, remedy, folder)
        locks = [lock.name for lock in folder.glob(f"{LOCK}*")]
        if any(is_locked(folder, name) for name in locks):
            raise UsageError(f"{folder} is being written", "wait until that has ended", folder)
        names = [file.name for file in self.files]
        known = [f"{number:05}.parquet" for number in range(len(names))]
        if not names or names != known or len(names) != self.facts.get(COUNT):
            raise UsageError(f"{folder} lacks files", "finish it by the same command", folder)

    @property
    def knows_looks(self) -> bool:
        """Whether it says how its images look."""
        return self.facts.get("look") is True

    def check(self, classifier: "PromptedClassifier") -> "HeadOnly":
        """What follows the tower of a classifier, which must be that of the bank.

        Raises:
            UsageError: it has other weights, or reads images in another way.
        """
        from .head_only import HeadOnly

        behind = HeadOnly(classifier)
        source = classifier.source
        here = json.loads(json.dumps(facts_of_tower(classifier)))
        name = one_line(self.facts.get("backbone"))
        fault = f"{self.folder} has features of"
        if self.facts.get("backbone_sha256") != here["backbone_sha256"]:
            remedy = f"embed the images by its backbone, or give --backbone {name}"
            raise UsageError(f"{fault} other weights than {source}", remedy, self.folder)
        others = differing(self.facts.get("input"), here["input"])
        if others:
            fault = f"{fault} another transform than {source} (INPUT: {one_line(others)})"
            raise UsageError(
                fault, "embed by a model that reads images so, or set that", self.folder
            )
        return behind

    def predictions(self, classifier: "PromptedClassifier") -> "Predictions":
        """Predictions for all images of the bank; UsageError if one has no feature."""
        import torch

        behind = self.check(classifier)
        found = []
        for part in BankFiles(self.files).rows():
            if any(part.faults):
                raise UsageError(next(filter(None, part.faults)), "embed without that image")
            found.append(behind.predict(torch.from_numpy(part.before)))
        return classifier.predict([]).joined(found)


def facts_of_tower(classifier: "PromptedClassifier") -> dict[str, Any]:
    """The facts that features of the frozen image tower of a classifier depend on."""
    from clip import weights_sha256

    name = classifier.backbone
    shown = Path(name).name if os.path.exists(name) else name
    sha256 = weights_sha256(name)
    return {"input": classifier.input, "backbone": shown, "backbone_sha256": sha256}
