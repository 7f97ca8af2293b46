"""The choice among candidates, and an estimate that the choice does not flatter.

All functions take logits (candidates, repeats, images, classes) of images that a candidate has not learned from, the
labels (images,).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from inference.calibration import Temperature

Floats = NDArray[np.float64]
FOLDS = 5  # at most: as many as a class has images
REPEATS = {2: 3}  # by the number of folds; else 2
DEPENDENT = 1.5  # by how much the variance over images is too small, as folds share images; measured (docs)
NEVER = -1  # the fold of an image that is alone in its class


def folds(labels: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """(repeats, images): the fold that holds an image out, stratified by class; (0, images) if all are alone."""
    counts = np.bincount(labels)
    number = int(min(FOLDS, counts.max()))
    if number < 2:
        return np.empty((0, len(labels)), dtype=np.int64)
    rng = np.random.default_rng(seed)
    found = np.full((REPEATS.get(number, 2), len(labels)), NEVER)
    for row in found:
        start = 0  # so that folds are equally large, also if classes are small
        for label in np.flatnonzero(counts > 1):
            places = rng.permutation(np.flatnonzero(labels == label))
            row[places] = (start + np.arange(len(places))) % number
            start += len(places)
    return found


def losses(logits: Floats, labels: NDArray[Any]) -> Floats:
    """(images,): the cross-entropy of logits (repeats, images, classes), the mean over repeats."""
    return -np.take_along_axis(log_softmax(logits, axis=-1), labels[None, :, None], axis=-1)[..., 0].mean(axis=0)


def right(logits: Floats, labels: NDArray[Any]) -> Floats:
    """(images,): the share of the repeats in which an image is classified correctly."""
    return (logits.argmax(axis=-1) == labels).mean(axis=0)


def inverse_temperatures(logits: Floats, labels: NDArray[Any]) -> Floats:
    """(candidates,): by which the logits of each candidate are multiplied before they are compared or added."""
    repeats, _, classes = logits.shape[1:]
    many = np.tile(labels, repeats)
    return np.array([1 / Temperature.fit(one.reshape(-1, classes), many).temperature for one in logits])


def stack(logits: Floats, labels: NDArray[Any], members: Mapping[int, float], start: Floats | None = None) -> Floats:
    """(candidates,): weights of the members, none below 0, whose sum of logits has the least cross-entropy (stacking).

    A penalty holds them near the default: the sum of the squared differences, divided by the number of images. So few
    images choose little, and many choose freely.

    Args:
        members: the default weight of each candidate that an ensemble may have, by its place.
        start: weights to begin with; those of the default if None.
    """
    repeats, images, classes = logits.shape[1:]
    places = list(members)
    z = logits[places].reshape(len(places), -1, classes)
    y = np.tile(labels, repeats)
    rows = np.arange(len(y))
    prior = np.array(list(members.values()))

    def loss(weights: Floats) -> tuple[float, Floats]:
        log_p = log_softmax(np.tensordot(weights, z, axes=1), axis=-1)
        residual = np.exp(log_p)
        residual[rows, y] -= 1
        apart = weights - prior
        slope = np.tensordot(z, residual, axes=2) / len(y) + 2 * apart / images
        return float(-log_p[rows, y].mean() + apart @ apart / images), slope

    first = prior if start is None else start[places]
    solved = minimize(loss, first, jac=True, bounds=[(0, None)] * len(places), method="L-BFGS-B")
    weights = np.zeros(len(logits))
    weights[places] = solved.x
    return weights


def combine(weights: Floats, logits: Floats) -> Floats:
    """The weighted sum of logits (candidates, ...)."""
    used = np.flatnonzero(weights)
    return np.tensordot(weights[used], logits[used], axes=1)


def choose(
    logits: Floats, labels: NDArray[Any], factors: Floats, members: Mapping[int, float], start: Floats | None = None
) -> Floats:
    """(candidates,): the weight of each candidate, of a single one or of an ensemble of `members`.

    The cross-entropy decides, of single candidates after a temperature: of few images it says more than the accuracy.
    The best single candidate must be better than the ensemble by more than one standard error. The winner must be
    better than the first candidate, zero-shot CLIP, by more than one, and have no accuracy that is lower by more.
    """
    singles = np.diag(factors)
    scores = np.stack([losses(combine(weights, logits), labels) for weights in singles])
    best = int(scores.mean(axis=1).argmin())
    chosen = stack(logits, labels, members, start)
    score = losses(combine(chosen, logits), labels)
    if in_errors(score - scores[best]) > 1:
        chosen, score = singles[best], scores[best]
    lead = right(logits[0], labels) - right(combine(chosen, logits), labels)
    return chosen if in_errors(scores[0] - score) > 1 and in_errors(lead) <= 1 else singles[0]


def in_errors(differences: Floats) -> float:
    """The mean of some differences, as a multiple of its standard error; 0 if all are 0."""
    mean = differences.mean()
    return float(mean / max(differences.std() / np.sqrt(len(differences)), 1e-12)) if mean else 0.0


@dataclass(frozen=True)
class Estimate:
    """The estimated accuracy on new images, in percent, with an interval of 95%."""

    accuracy: float
    low: float
    high: float
    images: int


def nested(
    logits: Floats, labels: NDArray[Any], factors: Floats, held: NDArray[np.int64], members: Mapping[int, float]
) -> Floats:
    """(repeats, images, classes): logits of the images of each fold, by the choice that the other images make."""
    found = np.empty(logits.shape[1:])
    start = stack(logits, labels, members)
    for repeat, row in enumerate(held):
        for fold in range(row.max() + 1):
            out = row == fold
            weights = choose(logits[:, :, ~out], labels[~out], factors, members, start)
            found[repeat, out] = combine(weights, logits[:, repeat, out])
    return found


def gain(accuracy: float, zero_shot: float, images: float) -> float:
    """By how much an accuracy rises if the images of each class are doubled: as much as it rose on average since
    zero-shot CLIP, which counts as a quarter of an image."""
    return (accuracy - zero_shot) / float(np.log2(4 * images))


def interval(accuracy: float, images: int) -> tuple[float, float]:
    """Of 95% (Wilson), for an accuracy on held-out images, in percent; of `images` / DEPENDENT independent ones."""
    p, n, z = accuracy / 100, images / DEPENDENT, 1.96
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * float(bound / (1 + z * z / n)) for bound in (centre - half, centre + half))
    return low, high


def estimate(logits: Floats, labels: NDArray[Any], folds: int, zero_shot: float) -> Estimate:
    """The accuracy of the final classifier, which learns from all images and not from those of all folds but one.

    Args:
        logits: those of `nested`.
        zero_shot: the accuracy of zero-shot CLIP, in percent.
    """
    mean, share = 100 * float(right(logits, labels).mean()), (folds - 1) / folds
    images = len(labels) / len(np.unique(labels)) * share
    mean = float(np.clip(mean - np.log2(share) * gain(mean, zero_shot, images), 0, 100))
    return Estimate(mean, *interval(mean, len(labels)), len(labels))
