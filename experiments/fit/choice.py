"""The choice among candidates, and an estimate that the choice does not flatter.

All functions take logits (candidates, repeats, images, classes) of images that a candidate has not learned from, the
labels (images,).
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


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def losses(logits: Floats, labels: NDArray[Any]) -> Floats:
    """(images,): the cross-entropy of logits (repeats, images, classes), the mean over repeats."""
    return -np.take_along_axis(log_softmax(logits), labels[None, :, None], axis=-1)[..., 0].mean(axis=0)


def right(logits: Floats, labels: NDArray[Any]) -> Floats:
    """(images,): the share of the repeats in which an image is classified correctly."""
    return (logits.argmax(axis=-1) == labels).mean(axis=0)


def inverse_temperatures(logits: Floats, labels: NDArray[Any]) -> Floats:
    """(candidates,): by which the logits of each candidate are multiplied before they are compared or added."""
    repeats, _, classes = logits.shape[1:]
    many = np.tile(labels, repeats)
    return np.array([1 / Temperature.fit(one.reshape(-1, classes), many).temperature for one in logits])


def greedy(logits: Floats, labels: NDArray[Any], factors: Floats, members: Sequence[int]) -> Floats:
    """(candidates,): weights of logits, by greedy selection with replacement (Caruana et al., ICML 2004).

    A round adds the member whose mean with those before has the least cross-entropy, after the logits of each are
    multiplied by its factor. The best of ROUNDS rounds counts.
    """
    scaled = {one: factors[one] * logits[one] for one in members}
    total: Any = 0.0
    chosen: list[int] = []
    least: list[float] = []
    for number in range(1, ROUNDS + 1):
        tried = {one: losses((total + scaled[one]) / number, labels).mean() for one in members}
        best = min(tried, key=tried.__getitem__)
        total = total + scaled[best]
        chosen.append(best)
        least.append(tried[best])
    rounds = int(np.argmin(least)) + 1
    return np.bincount(chosen[:rounds], minlength=len(logits)) * factors / rounds


def combine(weights: Floats, logits: Floats) -> Floats:
    """The weighted sum of logits (candidates, ...)."""
    used = np.flatnonzero(weights)
    return np.tensordot(weights[used], logits[used], axes=1)


def choose(logits: Floats, labels: NDArray[Any], factors: Floats, members: Sequence[int]) -> Floats:
    """(candidates,): the weight of each candidate, of a single one or of an ensemble of `members`.

    The least cross-entropy after a temperature decides: of few images it says more than the accuracy. The first
    candidate is zero-shot CLIP. It wins unless the best is better by more than one standard error, and if its accuracy
    is higher by more than one.
    """
    found = [*np.diag(factors), greedy(logits, labels, factors, members)]
    scores = np.stack([losses(combine(weights, logits), labels) for weights in found])
    best = int(scores.mean(axis=1).argmin())
    lead = right(logits[0], labels) - right(combine(found[best], logits), labels)
    is_better = in_errors(scores[0] - scores[best]) > 1 and in_errors(lead) <= 1
    return found[best if is_better else 0]


def in_errors(differences: Floats) -> float:
    """The mean of some differences, as a multiple of its standard error; 0 if all are 0."""
    mean = differences.mean()
    return float(mean / max(differences.std() / np.sqrt(len(differences)), 1e-12)) if mean else 0.0


@dataclass(frozen=True)
class Estimate:
    """What the accuracy on new images will be, in percent: an interval of 95%, and the estimate."""

    accuracy: float
    low: float
    high: float
    images: int


def nested(
    logits: Floats, labels: NDArray[Any], factors: Floats, held: NDArray[np.int64], members: Sequence[int]
) -> Floats:
    """(repeats, images, classes): logits of the images of each fold, by the choice that the other images make."""
    found = np.empty(logits.shape[1:])
    for repeat, row in enumerate(held):
        for fold in range(row.max() + 1):
            out = row == fold
            weights = choose(logits[:, :, ~out], labels[~out], factors, members)
            found[repeat, out] = combine(weights, logits[:, repeat, out])
    return found


def estimate(logits: Floats, labels: NDArray[Any], folds: int, curve: Sequence[tuple[float, float]]) -> Estimate:
    """The accuracy of the final classifier, which learns from all images and not from those of all folds but one.

    The last doubling of the `curve` says how much that adds. The interval is Wilson's, for n / DEPENDENT images.

    Args:
        logits: those of `nested`.
        curve: numbers of images of each class, and accuracies in percent.
    """
    mean = float(right(logits, labels).mean())
    (few, before), (many, after) = curve[-2:]
    slope = max(0.0, (after - before) / 100 / np.log2(many / few))
    mean = min(1.0, mean + slope * np.log2(folds / (folds - 1)))
    n, z = len(labels) / DEPENDENT, 1.96
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Estimate(100 * mean, 100 * (centre - half), 100 * (centre + half), len(labels))
