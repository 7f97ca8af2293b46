"""Records in files, which may be from anyone: dataclasses that are read by their type hints.

The records here are of images: what a run learned from, chose on and was tested on. Checkpoints
and results.json hold them.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from .schema import Accepts, shown

LARGEST = 2**53  # of a number
Count = Annotated[int, Accepts(int, 0, LARGEST - 1)]
Record = TypeVar("Record")


def is_setting(value: Any) -> bool:
    """Whether it is a text, a flag, a number or a list of these."""
    values = value if isinstance(value, list | tuple) else [value]
    return all(
        isinstance(x, str | None) or (isinstance(x, int | float) and abs(x) < LARGEST)
        for x in values
    )


Texts = Annotated[
    dict[str, str],
    Accepts(
        dict,
        note="texts by names",
        also=lambda texts: all(isinstance(text, str) for pair in texts.items() for text in pair),
    ),
]
# Settings or facts by their names
Facts = Annotated[
    dict[str, Any],
    Accepts(
        dict,
        note="texts, flags, numbers and lists of these, by names",
        also=lambda facts: all(
            isinstance(key, str) and is_setting(value) for key, value in facts.items()
        ),
    ),
]


def read(kind: type[Record], content: Any) -> Record:
    """A record of this dataclass from the content of a file. Unknown keys are ignored; a value that
    is missing or None gets the default.

    Fields may be what `Accepts` knows, `Annotated` with an `Accepts` of their own, and other
    dataclasses; lists of these; each of these or None.

    Raises:
        ValueError: a value is missing or of another type. The text names its key.
    """
    if not isinstance(content, Mapping):
        raise ValueError("not a record")
    hints = hints_of(kind)  # type: ignore[arg-type]
    values = {}
    for item in fields(kind):  # type: ignore[arg-type]
        value = content.get(item.name)
        if value is not None:
            try:
                values[item.name] = read_value(hints[item.name], value)
            except ValueError as error:
                raise ValueError(f"{item.name}: {error}") from error
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{item.name} is missing")
    return kind(**values)


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The type hints of a dataclass: studies read thousands of its records."""
    return get_type_hints(kind, include_extras=True)


def read_value(hint: Any, value: Any) -> Any:
    """A value of a record; ValueError for one of another type."""
    kinds = get_args(hint)
    if NoneType in kinds:
        (hint,) = (kind for kind in kinds if kind is not NoneType)
        return read_value(hint, value)
    if is_dataclass(hint):
        return read(hint, value)  # type: ignore[arg-type]
    if kinds and is_dataclass(kinds[0]):
        accepts = Accepts(list[Any], most=LARGEST)
    elif get_origin(hint) is Annotated:
        accepts = kinds[1]
    else:
        accepts = Accepts(hint, -LARGEST, LARGEST, most=LARGEST)
    if not accepts.accepts(value):
        raise ValueError(f"{shown(value)} is not {accepts}")
    if kinds and is_dataclass(kinds[0]):
        return [read(kinds[0], each) for each in value]  # type: ignore[arg-type]
    return tuple(value) if get_origin(hint) is tuple else value


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """A list of images."""

    dataset: str  # its name in results
    classes: str  # DATASET.SUBSAMPLE_CLASSES
    split: str  # `train`, `val` or `test`; without validation images, an epoch is chosen on `test`
    images: Count  # their number
    # Of the list (`trainers.base.data_use.list_digest`); None, as everywhere: not recorded
    sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Phase(ImageList):
    """Learning from images, or a test of them."""

    labels: Count  # how many of the images are used with their labels
    class_names: Count  # how many classes are named
    # DATASET.FEWSHOT_FILE, which chooses the images, below the folder of the datasets
    file: str | None = None
    file_sha256: str | None = None
    sentences: str | None = None  # the name of the file DATASET.SENTENCES, the text for the classes
    sentences_sha256: str | None = None
    wrong_labels: Count | None = None  # how many labels DATASET.NOISE_RATE has exchanged
    # Of a test: how many tests of these images ended in the output folder
    evaluations: Count | None = None


@dataclass(frozen=True, kw_only=True)
class SelectionRecord(ImageList):
    """A choice between epochs or between values of a setting, by images."""

    what: str  # `epoch` or the key of a setting; `training`: these train, and some are test images
    test_images: Count  # how many of the images are test images of the dataset of the run
    trials: Count | None = None  # how many epochs or values it chooses from
    by: str | None = None  # the rule of a study that has chosen it; None if the run itself has

    def __post_init__(self) -> None:
        if self.test_images > self.images:
            raise ValueError(f"{self.test_images} of {self.images} images are test images")
