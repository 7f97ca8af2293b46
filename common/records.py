"""Records of images: what a run learned from, chose on and was tested on. Checkpoints and
results.json hold them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, get_type_hints

from .names import CONTROL

LARGEST = 2**53  # of a number


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """A list of images."""

    dataset: str  # its name in results
    classes: str  # DATASET.SUBSAMPLE_CLASSES
    split: str  # `train`, `val` or `test`; without validation images, an epoch is chosen on `test`
    images: int  # their number
    sha256: str | None = (
        # Of the list (`trainers.base.data_use.list_digest`); None, as everywhere: not recorded
        None
    )

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read a record. Its file may be from anyone; unknown keys are ignored. Raises ValueError
        if a key is missing, or a value has another type, control characters, or is not a count."""
        if not isinstance(content, Mapping):
            raise ValueError("not a record")
        hints = get_type_hints(cls)
        known = {key: content[key] for key in hints if content.get(key) is not None}
        for key, value in known.items():
            fits = (
                not CONTROL.search(value)
                if isinstance(value, str)
                else type(value) is int and 0 <= value < LARGEST
            )
            if not fits or not isinstance(value, hints[key]):
                raise ValueError(f"{key} is {value!r}")
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class Phase(ImageList):
    """Learning from images, or a test of them."""

    labels: int  # how many of the images are used with their labels
    class_names: int  # how many classes are named
    file: str | None = (
        None  # DATASET.FEWSHOT_FILE, which chooses the images, below the folder of the datasets
    )
    file_sha256: str | None = None
    sentences: str | None = None  # the name of the file DATASET.SENTENCES, the text for the classes
    sentences_sha256: str | None = None
    evaluations: int | None = (
        None  # of a test: how many tests of these images ended in the output folder
    )


@dataclass(frozen=True, kw_only=True)
class SelectionRecord(ImageList):
    """A choice between epochs or between values of a setting, by images."""

    what: str  # `epoch` or the key of a setting; `training`: these train, and some are test images
    test_images: int  # how many of the images are test images of the dataset of the run
    trials: int | None = None  # how many epochs or values it chooses from
    by: str | None = None  # the rule of a study that has chosen it; None if the run itself has

    @classmethod
    def from_json(cls, content: Any) -> Self:
        choice = super().from_json(content)
        if choice.test_images > choice.images:
            raise ValueError(f"{choice.test_images} of {choice.images} images are test images")
        return choice
