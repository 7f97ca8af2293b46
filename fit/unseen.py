"""Classes without images: how much is added to their logits, so that they are answered as often as
classes are whose images were all held out (calibrated stacking; Chao et al., ECCV 2016).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from inference.sample import Sample

from .choice import MOST_TO_SCALE, Floats

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
    """What the logits (repeats, held, classes) lack where there were no images to learn from: the
    number of least cross-entropy, beside a temperature; at least 0.
    """
    repeats, _, classes = logits.shape
    labels = np.tile(sample.labels, repeats)
    some = slice(None, None, max(1, len(labels) * classes // MOST_TO_SCALE))
    y = labels[some]
    weights = np.tile(sample.weights, repeats)[some]
    parts = np.stack([logits.reshape(-1, classes)[some], lacking.reshape(-1, classes)[some]])
    rows = np.arange(len(y))

    def loss(factors: Floats) -> tuple[float, Floats]:
        log_p = log_softmax(np.tensordot(factors, parts, axes=1), axis=-1)
        residual = np.exp(log_p)
        residual[rows, y] -= 1
        residual *= weights[:, None]
        return float(-weights @ log_p[rows, y]), np.tensordot(parts, residual, axes=2)

    bounds = [(1e-6, None), (0, None)]
    inverse_temperature, added = minimize(loss, [1.0, 0.0], jac=True, bounds=bounds).x
    return float(min(added / inverse_temperature, LARGEST))
