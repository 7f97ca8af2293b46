"""How much each image counts, if several show one scene, or if classes are to count the same."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Images that represent new images of new scenes.

    Attributes:
        labels: (images,), whole numbers.
        groups: (images,), whole numbers. Images of one group show one scene, and count as one
            image.
        weights: (images,), which sum to 1.
    """

    labels: NDArray[Any]
    groups: NDArray[Any]
    weights: Floats

    @classmethod
    def of(cls, labels: ArrayLike, groups: ArrayLike | None = None, prior: str = "folder") -> Self:
        """All groups count the same; with the prior `equal`, all classes do, and all groups of a
        class.
        """
        y = np.asarray(labels)
        of_image = np.arange(len(y)) if groups is None else np.asarray(groups)
        weights = 1 / np.bincount(of_image)[of_image]
        if prior == "equal":
            weights = weights / np.bincount(y, weights)[y]
        return cls(y, of_image, weights / weights.sum())

    def part(self, inside: NDArray[np.bool_]) -> Self:
        """The sample of some of the images (images,)."""
        weights = self.weights[inside]
        return type(self)(self.labels[inside], self.groups[inside], weights / weights.sum())

    @cached_property
    def size(self) -> float:
        """As many independent images say as much. Of groups that count the same, it is their number
        (Kish, 1965).
        """
        of_groups = np.bincount(self.groups, self.weights)
        return round(float(1 / (of_groups**2).sum()), 6)

    def mean(self, values: Floats) -> float:
        """The mean of values (images,)."""
        return float(self.weights @ values)

    def in_errors(self, values: Floats) -> float:
        """The mean of values (images,), as a multiple of its standard error; 0 if it is 0."""
        mean = self.mean(values)
        of_groups = np.bincount(self.groups, self.weights * (values - mean))
        error = float(np.sqrt((of_groups**2).sum()))
        return mean / max(error, 1e-12) if mean else 0.0
