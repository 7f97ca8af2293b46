"""How long the trainings of a candidate take."""

import math
import time

from common.errors import UsageError

SETTLED = 1.0  # seconds of trainings that say how long others take


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
