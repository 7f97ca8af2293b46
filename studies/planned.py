"""The plan of a study: training runs, single calls of train.py, and choices."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .rules import Values
from .variant import Variant


class PlannedTraining(NamedTuple):
    """A training run; a test has that of the run whose prompts it uses."""

    protocol: str
    variant: Variant
    dataset: str
    seed: int
    shots: int


@dataclass(frozen=True)
class Run:
    """One call of train.py: `classes` (`base`, `new` or `all`) of a dataset, with its results in
    `folder`.

    `values` are those that a trial tries: KEY, VALUE, ...
    """

    protocol: str
    variant: Variant
    dataset: str
    seed: int
    shots: int
    classes: str
    folder: Path
    arguments: tuple[str, ...] = field(repr=False)
    values: Values = ()

    @property
    def trains(self) -> bool:
        """Whether it learns prompts, rather than testing those of another run."""
        return "--eval-only" not in self.arguments

    def option(self, name: str) -> str:
        """The value of an option of train.py; empty if the run has none."""
        return self.arguments[self.arguments.index(name) + 1] if name in self.arguments else ""


RunSequence = tuple[Run, ...]  # each run needs the ones before it


@dataclass(frozen=True)
class Search:
    """The choice of the settings of a variant on a dataset: one for all seeds."""

    protocol: str
    variant: Variant
    dataset: str  # the one to train on
    shots: int
    file: Path  # where the choice is written
    # By the values, runs whose mean accuracy counts; the first win a tie
    trials: dict[Values, tuple[Run, ...]]
