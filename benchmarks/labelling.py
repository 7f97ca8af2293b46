"""What labels buy: the methods of `measures/labelling.py` on pools of EuroSAT and SmallLand."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid


def imbalanced(labels: NDArray[np.int64], largest: int, seed: int) -> NDArray[np.int64]:
    """The places of a pool whose classes, in a random order, have largest // rank images."""
    rng = np.random.default_rng(seed)
    kept = []
    for rank, label in enumerate(rng.permutation(labels.max() + 1), start=1):
        own = np.flatnonzero(labels == label)
        kept.append(rng.permutation(own)[: largest // rank])
    return np.sort(np.concatenate(kept))


def area(labels: Sequence[int], accuracy: Sequence[float]) -> float:
    """The mean accuracy over the logarithm of the number of labels."""
    logs = np.log2(labels)
    return float(trapezoid(accuracy, logs) / (logs[-1] - logs[0]))
