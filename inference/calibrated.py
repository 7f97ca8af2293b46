"""calibration.json: what was fitted for a model, next to its prompts."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from common.errors import UsageError
from common.files import checksum, write_json
from common.records import Count, read
from common.results import CALIBRATION as FILE
from common.text import read_json
from common.version import made

from .artefact import EXPORT_CONFIG_FILE
from .calibration import Temperature, Threshold
from .sets import Sets

LARGEST = 8 << 20  # bytes: the scores of 300,000 images
CONTENT = "content_sha256"  # key of calibration.json: of all its other keys


@dataclass(frozen=True)
class Calibration:
    """Fitted values, and the images on which they were fitted.

    Attributes:
        class_names: in the order of the logits.
        images: their number.
        sha256: of the images (`sha256_of_images`).
        source: where they are from, for people.
        threshold: None if these images cannot promise an error.
        test_images: how many of them are test images of the model's dataset.
        chosen_images: how many of them have chosen an epoch or a setting of the model.
        unknown_images: whether nobody knows which images the model has learned from.
        model, model_sha256: the name and the checksum of the model's file (`load.model_file`), once
            it is written.
        date, version, commit: of the fit, once it is written; empty in files of earlier versions.
    """

    class_names: tuple[str, ...]
    images: Count
    sha256: str
    source: str
    temperature: Temperature
    sets: Sets
    threshold: Threshold | None = None
    test_images: Count = 0
    model: str = ""
    model_sha256: str = ""
    chosen_images: Count = 0
    unknown_images: bool = False
    date: str = ""
    version: str = ""
    commit: str = ""

    def __post_init__(self) -> None:
        counts = [self.test_images, self.chosen_images, len(self.sets.label_scores)]
        if self.threshold:
            counts += [self.threshold.answered, self.threshold.wrong]
        counts += [len(cluster.label_scores) for cluster in self.sets.clusters]
        numbers = {number for cluster in self.sets.clusters for number in cluster.classes}
        unknown = not numbers <= {*range(len(self.class_names))}
        if max(counts) > self.images or not self.class_names or unknown:
            raise ValueError("a number of images or classes is out of range")

    def __str__(self) -> str:
        text = f"{self.images:,} {self.source}"
        if self.test_images:
            text += f", {self.test_images:,} of them test images"
        if self.chosen_images:
            text += f", {self.chosen_images:,} of them chose a setting of the model"
        if self.unknown_images:
            text += ", of which the model may have learned"
        return text

    def check_model(self, file: Path, remedy: str) -> None:
        """Raise UsageError unless it was fitted for the model with this file."""
        if self.model_sha256 != (sha256 := checksum(file)):
            fitted = f"{self.model} with SHA-256 {self.model_sha256:.12}..."
            raise UsageError(
                f"the {FILE} is of {fitted}, not of {file} with {sha256:.12}...", remedy, file
            )

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        return content | {CONTENT: sha256_of(content)}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """From a file of anyone.

        Raises:
            ValueError: a key is missing, a value has another type or is out of range, or the file
                was changed.
        """
        if not isinstance(content, dict):
            raise ValueError("not a record")
        written = {key: value for key, value in content.items() if key != CONTENT}
        sha256 = sha256_of(written)
        if content.get(CONTENT, sha256) != sha256:  # earlier versions wrote none
            raise ValueError(f"its {CONTENT} is of another content")
        found = read(cls, written)
        if content["sets"].get("folds"):
            raise ValueError("its sets need the models of folds, which an older version wrote")
        return found


def sha256_of_images(images: Iterable[tuple[str, str]]) -> str:
    """One checksum of the SHA-256 of each image file and the name of its class, whatever their
    order.
    """
    lines = sorted(f"{sha256} {name}\n" for sha256, name in images)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def sha256_of(content: dict[str, Any]) -> str:
    """The SHA-256 of a calibration, whatever the order and the form of its JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def calibration_in(folder: Path) -> Calibration | None:
    """The calibration in the folder of a run or an export, None without one; UsageError if it is
    damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Calibration.from_json(read_json(file, LARGEST))
    except ValueError as error:
        reason = error.fault if isinstance(error, UsageError) else str(error)
        raise UsageError(
            f"{file} is not a calibration ({reason})", "fit it again by tools/calibrate.py", file
        ) from error


def write_calibration(folder: Path, calibration: Calibration, model: Path | None = None) -> None:
    """Write it for the model with this file, by default the one of an exported folder."""
    file = model or folder / EXPORT_CONFIG_FILE
    if not calibration.model:  # it is not a copy
        facts = made()
        commit = facts["commit"] or ""
        calibration = replace(
            calibration, date=facts["date"], version=facts["version"], commit=commit
        )
    calibration = replace(calibration, model=file.name, model_sha256=checksum(file))
    write_json(folder / FILE, calibration.to_json(), ensure_ascii=False)
