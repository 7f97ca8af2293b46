"""Classes without images: how much is added to their logits, so that they are answered as often as
classes are whose images were all held out (calibrated stacking; Chao et al., ECCV 2016).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from inference.sample import Sample

from .choice import MOST_TO_SCALE, CrossEntropy, Floats

LARGEST = 10.0  # times the spread of the logits


def without_images(
    folds: NDArray[np.int64], labels: NDArray[np.int64], held: NDArray[np.int64], classes: int
) -> NDArray[np.bool_]:
    """(repeats, held, classes): whether a class has no image outside of the fold of a held image.

    Args:
        folds: (repeats, images).
        labels: (images,).
    """
    found = np.zeros((len(folds), len(held), classes), dtype=bool)
    for row, places in zip(folds, found, strict=True):
        for fold in range(folds.max() + 1):
            places[row[held] == fold] = np.bincount(labels[row != fold], minlength=classes) == 0
    return found


def offset(logits: Floats, lacking: NDArray[np.bool_], sample: Sample) -> float:
    """The number to add to logits (repeats, held, classes) of classes without images: that of least
    cross-entropy, together with a temperature; at least 0.
    """
    parts = np.stack([logits, lacking], dtype=float)
    loss = CrossEntropy.of(parts, sample, MOST_TO_SCALE)
    bounds = [(1e-6, None), (0, None)]
    inverse_temperature, added = minimize(loss, [1.0, 0.0], jac=True, bounds=bounds).x
    return float(min(added / inverse_temperature, LARGEST))
