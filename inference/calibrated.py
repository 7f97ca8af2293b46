"""calibration.json: what was fitted for a model, next to its prompts."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from common.errors import UsageError
from common.files import write_text
from common.names import CONTROL
from common.text import read_json

from .calibration import HOTTEST, KINDS, Sets, Temperature, Threshold, check_share

FILE = "calibration.json"
LARGEST = 8 << 20  # bytes: the scores of 300,000 images
PARTS = {"temperature": Temperature, "sets": Sets, "threshold": Threshold}


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and on which images.

    Attributes:
        class_names: in the order of the logits.
        images: their number.
        sha256: of the images: the checksum of each file, and its class.
        source: where they are from, for people.
        threshold: None if these images cannot promise an error.
        test_images: how many of them are test images of the model's dataset.
    """

    class_names: tuple[str, ...]
    images: int
    sha256: str
    source: str
    temperature: Temperature
    sets: Sets
    threshold: Threshold | None = None
    test_images: int = 0

    def __str__(self) -> str:
        marked = f", {self.test_images:,} of them test images" if self.test_images else ""
        return f"{self.images:,} {self.source}{marked}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """From a file of anyone.

        Raises:
            ValueError: a key is missing, or a value has another type or is out of range.
        """
        try:
            values = {item.name: content[item.name] for item in fields(cls)}
            values |= {key: kind(**values[key]) for key, kind in PARTS.items() if values[key] is not None}
            values["class_names"] = tuple(values["class_names"])
            values["sets"] = Sets(values["sets"].kind, tuple(map(float, values["sets"].label_scores)))
            found = cls(**values)
            found.check()
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return found

    def check(self) -> None:
        """Raise ValueError or TypeError for values that no fit has."""
        texts = (*self.class_names, self.sha256, self.source)
        if not self.class_names or not all(isinstance(text, str) and not CONTROL.search(text) for text in texts):
            raise ValueError("a text is missing, or has control characters")
        counts = [self.images, self.test_images]
        numbers = [*self.sets.label_scores, self.temperature.temperature]
        if self.threshold:
            counts += [self.threshold.answered, self.threshold.wrong]
            numbers.append(self.threshold.above)
            check_share("error", self.threshold.error)
            check_share("confidence", self.threshold.confidence)
        if not all(type(count) is int and 0 <= count <= self.images for count in counts):
            raise ValueError("a number of images is out of range")
        if not all(map(math.isfinite, numbers)) or not 1 / HOTTEST <= self.temperature.temperature <= HOTTEST:
            raise ValueError("a number is out of range")
        if len(self.sets.label_scores) != self.images or self.sets.kind not in KINDS:
            raise ValueError("the sets are not of these images")
        if list(self.sets.label_scores) != sorted(self.sets.label_scores):
            raise ValueError("the scores do not ascend")


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration in the folder of a run or an export; None if it has none. UsageError if it is damaged."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Calibration.from_json(read_json(file, LARGEST))
    except ValueError as error:
        reason = error.what if isinstance(error, UsageError) else str(error)
        raise UsageError(
            f"{file} is not a calibration ({reason})", "fit it again by tools/calibrate.py", file
        ) from error


def write_calibration(folder: Path, calibration: Calibration) -> None:
    write_text(folder / FILE, json.dumps(calibration.to_json(), indent=1, ensure_ascii=False) + "\n")
