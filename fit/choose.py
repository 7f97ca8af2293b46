"""The choice among backbones, and among the candidates of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference.sample import Sample

from .choice import Floats, choose, combine, correct, losses, stack
from .plan import steps

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
        chosen = choose(logits, part, option.ensemble(inside), start)
        weights.append(chosen)
        answers = combine(chosen, logits)
        accuracy = part.mean(correct(answers, part.labels))
        scores.append(part.mean(losses(answers, part.labels)) - OF_ACCURACY * accuracy)
    return scores, weights


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


def each_fold(folds: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The number of the repeat, and the images of each fold (images,)."""
    for repeat, row in enumerate(folds):
        for fold in np.unique(row):
            yield repeat, row == fold


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
