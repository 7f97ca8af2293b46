"""Which candidates a fit has time for. fit.json keeps it, so that a fit that was killed ends as if
it were not. A `Clock` says whether the trainings of a candidate end in time.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from tqdm import tqdm

from common.errors import UsageError
from common.files import write_text

T = TypeVar("T")
# Gets the logits of held-out images, NaN for images of folds to come; raises UsageError if a
# candidate can stop
Check = Callable[[Tensor], None]
# Of the minutes, for trying heads; the others are for the choice, its estimate and the export
HEADS_SHARE = 0.7
SETTLED = 1.0  # seconds of trainings that say how long others take


def ignore(found: Tensor) -> None:
    """The `Check` of a candidate that continues."""


def steps(items: Sequence[T], what: str) -> Iterable[T]:
    """The items. A terminal shows how many are done, and the time that the others need."""
    return tqdm(items, what, leave=False, unit="fold", disable=None)


class Plan:
    """The decisions of a fit about its candidates, which begins now.

    Args:
        file: the record of the fit so far, which gets the decisions.
        record: its content; that of a fit that was killed has decisions already.
        minutes: for everything; 0: as long as it takes.

    Attributes:
        deadline: of `time.monotonic`, for the heads.
        end: the same, after which nothing is measured that the model does not need.
        backbone: whose candidates it is about; empty if there is only one.
        ms: milliseconds of an image, by backbone, if they were measured.
    """

    backbone = ""

    def __init__(
        self,
        file: Path | None = None,
        record: Mapping[str, Any] | None = None,
        minutes: float = 0.0,
    ):
        self.file = file
        self.record = dict(record or {})
        seconds = 60 * minutes or math.inf
        self.deadline = time.monotonic() + HEADS_SHARE * seconds
        self.end = time.monotonic() + seconds
        written = self.record.get("plan")
        known: dict[str, Any] = written if isinstance(written, dict) else {}
        self.trained: dict[str, str] | None = values_of(known.get("trained"), str)
        self.too_long: dict[str, str] = values_of(known.get("too_long"), str) or {}
        self.ms: dict[str, float] = values_of(known.get("ms"), float) or {}

    def of(self, backbone: str) -> "Plan":
        """The same plan, for the candidates of one of several backbones."""
        plan = copy(self)
        plan.backbone = backbone
        return plan

    def key(self, candidate: str) -> str:
        """The name of a candidate among those of all backbones."""
        return f"{self.backbone} {candidate}" if self.backbone else candidate

    def write(
        self,
        trained: dict[str, str] | None = None,
        too_long: dict[str, str] | None = None,
        ms: dict[str, float] | None = None,
    ) -> None:
        """Take decisions.

        Args:
            trained: for each trained method why it is left out; empty if it is tried.
            too_long: for each head that takes too long, by its `key`, how long.
            ms: milliseconds of an image, by backbone.
        """
        self.trained = self.trained if trained is None else trained
        self.too_long |= too_long or {}
        self.ms |= ms or {}
        if not self.file:
            return
        plan: dict[str, Any] = {"too_long": self.too_long}
        if self.trained is not None:
            plan["trained"] = self.trained
        if self.ms:
            plan["ms"] = self.ms
        write_text(self.file, json.dumps(self.record | {"plan": plan}) + "\n")


def values_of(content: Any, kind: type) -> dict[str, Any] | None:
    """The content of a file of anyone, if it is values of a kind by names."""
    if isinstance(content, dict) and all(isinstance(value, kind) for value in content.values()):
        return content
    return None


class TooLong(UsageError):
    """A candidate would not end in time."""


class Clock:
    """How long the trainings of a candidate take, from those that have ended.

    Args:
        deadline: of `time.monotonic`.
        trainings: how many there are.
    """

    def __init__(self, deadline: float = math.inf, trainings: int = 1):
        self.deadline = deadline
        self.trainings = trainings
        self.began = time.monotonic()
        self.ended = 0

    def next(self) -> None:
        """A training has ended."""
        self.ended += 1
        self.check(0)

    def check(self, share: float) -> None:
        """Raise TooLong if the trainings would not end before the deadline; `share` of the present
        one has ended.
        """
        now = time.monotonic()
        spent = now - self.began
        left = self.deadline - now
        needed = spent / (self.ended + share) * self.trainings
        if spent > SETTLED and needed - spent > left:
            fault = (
                f"it takes about {needed / 60:.1f} minutes, and {max(0, left + spent) / 60:.1f} "
                "are left"
            )
            raise TooLong(fault, "raise --minutes")
