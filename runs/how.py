"""The rules of tools/merge.py. Nothing here waits for torch."""

from dataclasses import dataclass

# Settings that a sum of low-rank maps has of its own
OF_SUMS = {"R", "ALPHA"}


@dataclass(frozen=True)
class How:
    """How models are merged.

    Attributes:
        name: one of HOWS.
        value: of wise-ft, the share of the learned change; of task, the factor of the sum of
            changes; of ties, the share of entries that stay; of dare, the share that goes. None if
            it is not given.
    """

    name: str
    value: float | None = None

    @classmethod
    def read(cls, text: str) -> "How":
        """From `name` or `name:value`; ValueError for another text."""
        name, colon, number = text.partition(":")
        if name not in HOWS or (colon and not HOWS[name]):
            raise ValueError(f"{text!r} is not one of {', '.join(HOWS)}")
        try:
            value = float(number) if colon else None
        except ValueError:
            raise ValueError(f"{number!r} is not a number") from None
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{number} is not from 0 to 1")
        if name == "task" and value is None:
            raise ValueError("task needs a factor, such as task:0.7")
        if name == "dare" and value == 1:
            raise ValueError("dare:1 leaves nothing")
        return cls(name, value)

    @property
    def chooses(self) -> bool:
        """Whether it needs validation images."""
        return self.name == "greedy" or (self.name == "wise-ft" and self.value is None)

    @property
    def of_one(self) -> bool:
        """Whether it merges one model with what that started from."""
        return self.name == "wise-ft"

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}:{self.value:g}"


# Whether a value may follow
HOWS = {"mean": False, "greedy": False, "wise-ft": True, "task": True, "ties": True, "dare": True}
