"""The choice among candidates and backbones, and an estimate that the choice does not flatter.

All functions take logits (candidates, repeats, images, classes) of images that a candidate has not
learned from, and the `Sample` of these images: their labels, their groups, and how much each
counts.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from inference.calibration import Temperature
from inference.sample import Sample

from .plan import steps

Floats = NDArray[np.float64]
FOLDS = 5  # at most: as many as a class has groups
REPEATS = {2: 3}  # by the number of folds; else 2
# By how much the variance over images is too small, as folds share images; measured (docs)
DEPENDENT = 1.5
MOST_TO_SCALE = 10**6  # logits of a candidate that say how much they are multiplied
NEVER = -1  # the fold of a group that is alone in its class
CAUTION = 0.5  # standard errors; chosen on other data sets than those of docs/measurements/fit.md
RIGOUR = 10.0  # the same
MOST_VOTES = 5  # candidates of an ensemble
MOSTLY_SINGLE = 0.9  # of the groups, at least


def folds(labels: NDArray[Any], groups: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """(repeats, images): the fold that holds an image out, stratified by class; (0, images) if no
    class has two groups.

    Images of one group are in one fold. If most groups are single images, the others follow their
    first image: one group more changes the folds of no other image.
    """
    # A row for each group of a class, however many images it has
    pairs, of_image = np.unique(np.stack([labels, groups]), axis=1, return_inverse=True)
    of_image = of_image.ravel()
    if np.mean(np.bincount(of_image) == 1) < MOSTLY_SINGLE:
        return possible(split(pairs[0], pairs[1], seed)[:, of_image], labels, groups)
    dealt = deal(labels, seed)
    _, first, of_group = np.unique(groups, return_index=True, return_inverse=True)
    together = dealt[:, first][:, of_group.ravel()]
    return possible(together, labels, groups)


def number_of_folds(counts: NDArray[Any]) -> int:
    """For classes with so many images or groups."""
    return int(min(FOLDS, counts.max()))


def deal(labels: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Folds of images, one after another for each class; a single image of a class is in none."""
    counts = np.bincount(labels)
    number = number_of_folds(counts)
    dealt = np.full((REPEATS.get(number, 2), len(labels)), NEVER)
    rng = np.random.default_rng(seed)
    for row in dealt:
        start = 0  # so that folds are equally large, also if classes are small
        for label in np.flatnonzero(counts > 1):
            places = rng.permutation(np.flatnonzero(labels == label))
            row[places] = (start + np.arange(len(places))) % number
            start += len(places)
    return dealt


def split(labels: NDArray[Any], groups: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Folds of groups; one with images of two classes has two places here. A group with the only
    place of a class is in none.
    """
    alone = groups[np.bincount(labels)[labels] < 2]
    can_be_held = ~np.isin(groups, alone)
    nothing = np.empty((0, len(labels)), dtype=np.int64)
    if not can_be_held.any():
        return nothing
    of_class = number_of_folds(np.bincount(labels[can_be_held]))
    number = min(of_class, len(np.unique(groups[can_be_held])))
    if number < 2:
        return nothing
    found = np.full((REPEATS.get(number, 2), len(labels)), NEVER)
    for repeat in range(len(found)):
        folds = stratified(labels[can_be_held], groups[can_be_held], number, seed + repeat)
        found[repeat, can_be_held] = folds
    return found


def stratified(
    labels: NDArray[Any], groups: NDArray[Any], number: int, seed: int
) -> NDArray[np.int64]:
    """(images,): so many folds, with about the same classes and with whole groups."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = np.empty(len(labels), dtype=np.int64)
    splitter = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # That a class has fewer groups than there are folds
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, out) in enumerate(splitter.split(labels, labels, groups)):
            folds[out] = fold
    return folds


def possible(
    folds: NDArray[np.int64], labels: NDArray[Any], groups: NDArray[Any]
) -> NDArray[np.int64]:
    """The folds (repeats, images) after a group without which a class has no image to learn from is
    taken out of all of them; (0, images) if fewer than two are left.
    """
    found = folds.copy()
    counts = np.bincount(labels)
    never = (folds == NEVER).any(axis=0)
    found[:, np.isin(groups, groups[never])] = NEVER
    for row in folds:
        for fold in np.unique(row[row != NEVER]):
            left = np.bincount(labels[row != fold], minlength=len(counts))
            without = np.isin(labels, np.flatnonzero((left == 0) & (counts > 0)))
            found[:, np.isin(groups, groups[without])] = NEVER
    for row in found:
        left = np.unique(row[row != NEVER])
        if len(left) < 2:
            return found[:0]
        row[row != NEVER] = np.searchsorted(left, row[row != NEVER])
    return found


def losses(logits: Floats, labels: NDArray[Any]) -> Floats:
    """(images,): the cross-entropy of logits (repeats, images, classes), the mean over repeats."""
    return -np.take_along_axis(log_softmax(logits, axis=-1), labels[None, :, None], axis=-1)[
        ..., 0
    ].mean(axis=0)


def correct(logits: Floats, labels: NDArray[Any]) -> Floats:
    """(images,): the share of the repeats in which an image is classified correctly."""
    return (logits.argmax(axis=-1) == labels).mean(axis=0)


def accuracy_of(logits: Floats, sample: Sample) -> dict[str, float]:
    """The accuracy of logits (repeats, images, classes), with its interval, in percent."""
    accuracy = 100 * sample.mean(correct(logits, sample.labels))
    low, high = interval(accuracy, sample.size)
    return {"accuracy": accuracy, "low": low, "high": high}


@dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy of a weighted sum of logits, with its slopes by the weights.

    Attributes:
        logits: (parts, rows, classes), of the images of all repeats.
        labels: (rows,).
        weights: (rows,).
    """

    logits: Floats
    labels: NDArray[Any]
    weights: Floats

    @classmethod
    def of(cls, logits: Floats, sample: Sample, most: float = np.inf) -> Self:
        """That of logits (parts, repeats, images, classes), of all of them or, if a part has more
        numbers than `most`, of some.
        """
        parts, repeats, images, classes = logits.shape
        rows = slice(None, None, max(1, int(repeats * images * classes // most)))
        return cls(
            logits.reshape(parts, -1, classes)[:, rows],
            np.tile(sample.labels, repeats)[rows],
            np.tile(sample.weights, repeats)[rows],
        )

    def __call__(self, factors: Floats) -> tuple[float, Floats]:
        kind = self.logits.dtype
        places = np.arange(len(self.labels)), self.labels
        log_p = log_softmax(np.tensordot(factors.astype(kind), self.logits, axes=1), axis=-1)
        residual = np.exp(log_p)
        residual[places] -= 1
        residual *= self.weights[:, None].astype(kind)
        slopes = np.tensordot(self.logits, residual, axes=2)
        return float(-self.weights @ log_p[places]), slopes


def inverse_temperatures(logits: Floats, sample: Sample) -> Floats:
    """(candidates,): by which the logits of each candidate are multiplied before they are compared
    or added.
    """
    some = CrossEntropy.of(logits, sample, MOST_TO_SCALE)
    scaled = [Temperature.fit(one, some.labels, some.weights) for one in some.logits]
    return np.array([1 / one.temperature for one in scaled])


def evidence(logits: Floats, sample: Sample) -> float:
    """How much logits (images, classes) of zero-shot CLIP say of the classes: the factor of least
    cross-entropy, less CAUTION of its standard errors; 0 if they may say nothing.
    """
    factor = 1 / Temperature.fit(logits, sample.labels, sample.weights).temperature
    p = softmax(factor * logits, axis=1)
    variance = (p * logits**2).sum(axis=1) - (p * logits).sum(axis=1) ** 2
    information = sample.size * sample.mean(variance)
    if not information:  # logits that say nothing
        return 0.0
    return max(0.0, factor - CAUTION * information**-0.5)


def stack(
    logits: Floats, sample: Sample, ensemble: Mapping[int, float], start: Floats | None = None
) -> Floats:
    """(candidates,): weights of an ensemble, none below 0, whose sum of logits has the least
    cross-entropy (stacking).

    A penalty holds them near the default ones times their best common factor: the sum of the
    squared differences, times RIGOUR, divided by the number of independent images. So few images
    choose little, and many choose freely.

    Args:
        ensemble: the default weight of each candidate that an ensemble may have, by its place.
        start: weights to begin with; those of the default if None.
    """
    places = list(ensemble)
    weights = np.zeros(len(logits))
    weights[places] = list(ensemble.values())
    prior = weights[places] * inverse_temperatures(combine(weights, logits)[None], sample)
    cross_entropy = CrossEntropy.of(logits[places], sample)
    cross_entropy = replace(cross_entropy, weights=cross_entropy.weights / logits.shape[1])
    rigour = RIGOUR / sample.size

    def loss(factors: Floats) -> tuple[float, Floats]:
        apart = factors - prior
        value, slopes = cross_entropy(factors)
        return value + float(rigour * apart @ apart), slopes + 2 * rigour * apart

    start = prior if start is None else start[places]
    weights[places] = minimize(
        loss, start, jac=True, bounds=[(0, None)] * len(places), method="L-BFGS-B"
    ).x
    return weights


def vote(
    logits: Floats, sample: Sample, ensemble: Mapping[int, float], start: Floats | None = None
) -> Floats:
    """`stack` of the MOST_VOTES candidates that have the largest weights in a stack of all."""
    weights = stack(logits, sample, ensemble, start)
    largest = np.argsort(-weights, kind="stable")[:MOST_VOTES]
    if np.count_nonzero(weights) <= MOST_VOTES:
        return weights
    return stack(logits, sample, {place: ensemble[place] for place in largest.tolist()}, weights)


def combine(weights: Floats, logits: Floats) -> Floats:
    """The weighted sum of logits (candidates, ...)."""
    used = np.flatnonzero(weights)
    return np.tensordot(weights[used].astype(logits.dtype), logits[used], axes=1)


def choose(
    logits: Floats,
    sample: Sample,
    ensemble: Mapping[int, float],
    start: Floats | None = None,
) -> Floats:
    """(candidates,): the weight of each candidate, of a single one or of the ensemble.

    The cross-entropy decides, of single candidates after a temperature: of few images it says more
    than the accuracy. The best single candidate must be better than the ensemble by more than one
    standard error. The winner must be better than the first candidate, zero-shot CLIP, and have no
    accuracy that is lower by more than one.
    """
    singles = np.diag(inverse_temperatures(logits, sample))
    scores = [losses(combine(weights, logits), sample.labels) for weights in singles]
    best = int(np.argmin([sample.mean(score) for score in scores]))
    chosen = vote(logits, sample, ensemble, start)
    score = losses(combine(chosen, logits), sample.labels)
    # Names that mislead may have no weight
    if sample.in_errors(score - scores[best]) > 1 or not chosen.any():
        chosen = singles[best]
        score = scores[best]
    lead = correct(logits[0], sample.labels) - correct(combine(chosen, logits), sample.labels)
    if sample.in_errors(scores[0] - score) > 0 and sample.in_errors(lead) <= 1:
        return chosen
    return singles[0]


@dataclass(frozen=True)
class Estimate:
    """The estimated accuracy on new images, in percent, with an interval of 95%.

    Attributes:
        images: on so many it was estimated.
        groups: so many independent images say as much: near-copies count once.
        cross_validated: the accuracy on these images, before the gain by the images of their folds
            is added.
    """

    accuracy: float
    low: float
    high: float
    images: int
    groups: float
    cross_validated: float


def gain(accuracy: float, zero_shot: float, images: float, doublings: float = 1.0) -> float:
    """By how much an accuracy rises if the images of each class are doubled, so many times.

    A doubling divides the error by as much as each did on average since zero-shot CLIP, which
    counts as a quarter of an image: errors fall as a power of the number of images.
    """
    error = 100 - accuracy
    if error <= 0 or zero_shot >= 100:
        return 0.0
    ratio = error / (100 - zero_shot)
    return error * (1 - ratio ** (doublings / float(np.log2(4 * images))))


def interval(accuracy: float, images: float) -> tuple[float, float]:
    """Of 95% (Wilson), for an accuracy on held-out images, in percent; of `images` / DEPENDENT
    independent ones.
    """
    p = accuracy / 100
    n = images / DEPENDENT
    z = 1.96
    centre = p + z * z / (2 * n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * float(bound / (1 + z * z / n)) for bound in (centre - half, centre + half))
    return low, high


def with_missed(found: Estimate, share: float) -> Estimate:
    """The estimate if this share of new images is always answered wrong."""
    accuracy = found.accuracy * (1 - share)
    low, high = interval(accuracy, found.groups / (1 - share))
    return replace(found, accuracy=accuracy, low=low, high=high)


def groups_of_class(labels: NDArray[Any], groups: NDArray[Any]) -> float:
    """The mean number of groups of a class."""
    return np.unique(np.stack([labels, groups]), axis=1).shape[1] / len(np.unique(labels))


def estimate(
    logits: Floats, sample: Sample, folds: int, zero_shot: float, of_class: float
) -> Estimate:
    """The accuracy of the final classifier, which learns from all images and not from those of all
    folds but one.

    Args:
        logits: those of `nested`.
        zero_shot: the accuracy of zero-shot CLIP, in percent.
        of_class: the mean number of groups of a class (`groups_of_class`), of all images.
    """
    cross_validated = 100 * sample.mean(correct(logits, sample.labels))
    share = (folds - 1) / folds
    more = gain(cross_validated, zero_shot, of_class * share, -np.log2(share))
    accuracy = float(np.clip(cross_validated + more, 0, 100))
    low, high = interval(accuracy, sample.size)
    return Estimate(accuracy, low, high, len(sample.labels), sample.size, cross_validated)


# By how much the cross-entropy of a backbone may be larger, for an accuracy larger by 1; chosen on
# other data sets than those of docs/measurements/fit.md
OF_ACCURACY = 3.0
Ensemble = Callable[[NDArray[np.bool_]], Mapping[int, float]]


@dataclass(frozen=True)
class Option:
    """The results of the candidates of a backbone.

    Attributes:
        logits: (candidates, repeats, images, classes).
        ensemble: from the images that choose (images,) to those of an ensemble and their
            default weights.
    """

    logits: Floats
    ensemble: Ensemble


def choose_each(
    options: Sequence[Option],
    sample: Sample,
    inside: NDArray[np.bool_],
    starts: Sequence[Floats | None],
) -> tuple[list[float], list[Floats]]:
    """For each backbone the score of the choice among its candidates, and that choice (`choose`),
    by the images `inside` (images,) of the sample. The lowest one wins: the cross-entropy less
    OF_ACCURACY times the accuracy, as encoders may be as sure and not as often right.
    """
    part = sample.part(inside)
    weights = []
    scores = []
    for option, start in zip(options, starts, strict=True):
        logits = option.logits[:, :, inside]
        weights.append(choose(logits, part, option.ensemble(inside), start))
        answers = combine(weights[-1], logits)
        accuracy = part.mean(correct(answers, part.labels))
        scores.append(part.mean(losses(answers, part.labels)) - OF_ACCURACY * accuracy)
    return scores, weights


def each_fold(folds: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The number of the repeat, and the images of each fold (images,)."""
    for repeat, row in enumerate(folds):
        for fold in np.unique(row):
            yield repeat, row == fold


def nested(
    options: Sequence[Option], sample: Sample, folds: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64]]:
    """The logits of the images of each fold by the choice that the other images make, for each
    backbone: (backbones, repeats, images, classes); and the backbone that these choose (repeats,
    images).

    Args:
        folds: (repeats, images).
    """
    out = np.zeros(len(sample.labels), dtype=bool)  # of the folds
    starts = [stack(one.logits, sample, one.ensemble(~out)) for one in options]
    backbones = np.zeros(folds.shape, dtype=np.int64)
    found = np.stack([one.logits[0] for one in options])
    for repeat, out in steps([*each_fold(folds)], "choice and estimate"):
        scores, weights = choose_each(options, sample, ~out, starts)
        backbones[repeat, out] = np.argmin(scores)
        logits = (one.logits[:, repeat, out] for one in options)
        found[:, repeat, out] = list(map(combine, weights, logits))
    return found, backbones


@dataclass(frozen=True)
class Selection:
    """The choice among backbones.

    Attributes:
        place: of the chosen backbone.
        weights: (candidates,), of the chosen backbone.
        scores: of each backbone, by `choose_each`.
        logits: (backbones, repeats, images, classes), by `nested`.
        outside: (repeats, images, classes), the same by the backbone that the other images choose.
    """

    place: int
    weights: Floats
    scores: Sequence[float]
    logits: Floats
    outside: Floats

    def part(self, inside: NDArray[np.bool_]) -> "Selection":
        """The same of some of the images (images,)."""
        logits = self.logits[:, :, inside]
        return replace(self, logits=logits, outside=self.outside[:, inside])


def select(options: Sequence[Option], sample: Sample, folds: NDArray[np.int64]) -> Selection:
    """Choose a backbone and among its candidates.

    Args:
        folds: (repeats, images).
    """
    everything = np.ones(len(sample.labels), dtype=bool)
    scores, weights = choose_each(options, sample, everything, [None] * len(options))
    place = int(np.argmin(scores))
    logits, backbones = nested(options, sample, folds)
    outside = np.take_along_axis(logits, backbones[None, :, :, None], axis=0)[0]
    return Selection(place, weights[place], scores, logits, outside)
