"""The choice among candidates, and an estimate that the choice does not flatter.

All functions take logits (candidates, repeats, images, classes) of images that a candidate has not learned from, the
labels (images,), and `held` (images,): which images were held out, as those that are alone in their class never are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.calibration import Temperature

Floats = NDArray[np.float64]
FOLDS = 5  # at most: as many as a class has images
REPEATS = {2: 3}  # by the number of folds; else 2
ROUNDS = 10  # of the greedy selection
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


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def loss(logits: Floats, labels: NDArray[Any]) -> float:
    """The mean cross-entropy of logits (repeats, images, classes)."""
    return float(-np.take_along_axis(log_softmax(logits), labels[None, :, None], axis=-1).mean())


def right(logits: Floats, labels: NDArray[Any]) -> Floats:
    """(..., images): the share of the repeats in which an image is classified correctly."""
    return (logits.argmax(axis=-1) == labels).mean(axis=-2)


def greedy(logits: Floats, labels: NDArray[Any], members: Sequence[int]) -> Floats:
    """(candidates,): weights of logits, by greedy selection with replacement (Caruana et al., ICML 2004).

    Logits are divided by their temperatures first. A round adds the member whose mean with those before has the least
    cross-entropy; the best of ROUNDS rounds counts.
    """
    repeats, _, classes = logits.shape[1:]
    of_all = np.tile(labels, repeats)
    heat = {one: Temperature.fit(logits[one].reshape(-1, classes), of_all).temperature for one in members}
    cooled = {one: logits[one] / heat[one] for one in members}
    total: Any = 0.0
    chosen: list[int] = []
    losses: list[float] = []
    for number in range(1, ROUNDS + 1):
        tried = {one: loss((total + cooled[one]) / number, labels) for one in members}
        best = min(tried, key=tried.__getitem__)
        total = total + cooled[best]
        chosen.append(best)
        losses.append(tried[best])
    weights = np.zeros(len(logits))
    for one in chosen[: int(np.argmin(losses)) + 1]:
        weights[one] += 1 / heat[one]
    return weights


def combine(weights: Floats, logits: Floats) -> Floats:
    """The weighted sum of logits (candidates, ...)."""
    used = np.flatnonzero(weights)
    return np.tensordot(weights[used], logits[used], axes=1)


def choose(logits: Floats, labels: NDArray[Any], members: Sequence[int]) -> Floats:
    """(candidates,): the weight of each candidate; a single one has weight 1.

    The first candidate is zero-shot CLIP. The ensemble of `members` competes with each single candidate.
    """
    singles = right(logits, labels)
    weights = greedy(logits, labels, members)
    found = [*np.eye(len(logits)), weights]
    scores = np.vstack([singles, right(combine(weights, logits)[None], labels)])
    best = int(scores.mean(axis=1)[::-1].argmax())
    best = len(scores) - 1 - best  # of equal ones the ensemble
    return found[simpler(scores, best)]


def simpler(scores: Floats, best: int) -> int:
    """Zero-shot CLIP, if the best candidate is not better by more than one standard error."""
    difference = scores[best] - scores[0]
    error = difference.std() / np.sqrt(len(difference))
    return 0 if difference.mean() <= error else best


@dataclass(frozen=True)
class Estimate:
    """What the accuracy on new images will be, in percent: an interval of 95%, and the estimate."""

    accuracy: float
    low: float
    high: float
    images: int


def nested(logits: Floats, labels: NDArray[Any], held_in: NDArray[np.int64], members: Sequence[int]) -> Floats:
    """(repeats, images, classes): logits of held-out images by the choice that the images of other folds make."""
    found = np.full(logits.shape[1:], np.nan)
    for repeat, row in enumerate(held_in):
        for fold in range(row.max() + 1):
            others = (row != fold) & (row != NEVER)
            weights = choose(logits[:, :, others], labels[others], members)
            found[repeat, row == fold] = combine(weights, logits[:, repeat, row == fold])
    return found


def estimate(
    logits: Floats, labels: NDArray[Any], held_in: NDArray[np.int64], curve: Sequence[tuple[float, float]]
) -> Estimate:
    """The accuracy of the final classifier, which learns from more images than those of the folds."""
    mean = float(right(logits, labels).mean())
    n = len(labels)
    z = 1.96
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Estimate(100 * mean, 100 * (centre - half), 100 * (centre + half), n)
