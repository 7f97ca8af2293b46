"""A bank: the folder that `tools/embed.py` has written, which is read in place of its images."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import UsageError, one_line
from common.lock import LOCK, is_locked
from common.start import required_packages
from common.text import read_json

from .tables import REQUIREMENTS

if TYPE_CHECKING:
    from .behind_tower import BehindTower
    from .classifier import PromptedClassifier
    from .predictions import Predictions

RECORD = "_embed.json"
COUNT = "shards"  # in it, once all are known
MADE = "made"  # in it: by which version of this project
FORM = 2  # of the files; earlier ones had no column `tower`
ROWS = 1000  # at a time
DAMAGED = OSError, ValueError, KeyError, TypeError, AttributeError  # of files of anyone


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
            with opened(file) as table:
                rows += table.metadata.num_rows
        return rows

    def __iter__(self) -> Iterator[str]:
        for part in self.parts("path"):
            yield from part["path"].to_pylist()

    def parts(self, *columns: str) -> Iterator[Any]:
        """At most ROWS rows at a time, with those of the columns that there are."""
        for file in self.files:
            with opened(file) as table:
                yield from parts_of(table, columns)

    def rows(self, *columns: str) -> Iterator[Rows]:
        """At most ROWS rows at a time, with those of the columns that there are."""
        for file in self.files:
            with opened(file) as table:
                for part in parts_of(table, (*columns, "error", "tower")):
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
def opened(file: Path) -> Iterator[Any]:
    """A file of a bank; UsageError if it is damaged."""
    with required_packages(REQUIREMENTS):
        import pyarrow
        from pyarrow.parquet import ParquetFile
    try:
        if not file.is_file():  # a pipe would wait
            raise FileNotFoundError("it is not a file")
        with ParquetFile(file) as table:
            yield table
    except (*DAMAGED, pyarrow.ArrowException) as error:
        fault = f"{file} is damaged ({one_line(error)})"
        raise UsageError(fault, "delete it, and embed again", file) from error


def parts_of(table: Any, columns: Sequence[str]) -> Iterator[Any]:
    known = [name for name in columns if name in table.schema_arrow.names]
    yield from table.iter_batches(ROWS, columns=known)


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

    def check(self, classifier: "PromptedClassifier") -> "BehindTower":
        """What follows the tower of a classifier, which must be that of the bank.

        Raises:
            UsageError: it has other weights, or reads images in another way.
        """
        from .behind_tower import BehindTower

        behind = BehindTower(classifier)
        backbone = classifier.cfg.MODEL.BACKBONE.NAME
        self.check_tower(classifier.input, backbone, classifier.source)
        return behind

    def check_tower(self, image: dict[str, Any], backbone: str, source: Any) -> None:
        """Raise UsageError if a source has other weights or reads images in another way.

        Args:
            image, backbone: see `facts_of_tower`.
        """
        here = json.loads(json.dumps(facts_of_tower(image, backbone)))
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


def facts_of_tower(image: dict[str, Any], backbone: str) -> dict[str, Any]:
    """The facts that features of a frozen image tower depend on; `image` has the keys of INPUT that
    the transform of a test reads.
    """
    from clip import weights_sha256

    shown = Path(backbone).name if os.path.exists(backbone) else backbone
    return {"input": image, "backbone": shown, "backbone_sha256": weights_sha256(backbone)}
