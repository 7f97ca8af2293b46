"""Repaired confidence, and what a classifier can promise: fitted on held-out images.

- `Temperature` changes probabilities, and never the predicted class.
- `Threshold`: which answers to give, so that at most an asked share of the given ones is wrong.

`Sets` (sets.py) are classes for an image, among which is the right one for an asked share of the
images.

All functions take arrays or tensors on the CPU: logits (images, classes), and labels (images,).
They raise UsageError for logits that are not finite and for labels that are not classes.
`Threshold` and `Sets` read the logits before any repair, so that their promises hold on the same
images on which a temperature is fitted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import UsageError
from common.records import Count
from common.schema import Accepts

from .sample import Floats, Sample

HOTTEST = 1e6  # the largest temperature; the smallest is its inverse
LEVELS = 10  # shares of the images that a threshold is tried on
Share = Annotated[float, Accepts(float, 0, 1, "and neither", lambda share: 0 < share < 1)]
# scipy is imported where something is fitted: a prediction does not wait for it.


def log_softmax(logits: ArrayLike) -> Floats:
    """(images, classes) -> the logarithms of their probabilities, in double precision."""
    z = np.asarray(logits, dtype=np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def softmax(logits: ArrayLike) -> Floats:
    return np.exp(log_softmax(logits))


def log_odds(logits: ArrayLike) -> Floats:
    """(images, classes) -> (images,): log(p / (1 - p)) of the largest probability p, exact also
    where p rounds to 1.
    """
    z = np.sort(np.asarray(logits, dtype=np.float64), axis=1)
    return -np.logaddexp.reduce(z[:, :-1] - z[:, -1:], axis=1, initial=-np.inf)


def checked(logits: ArrayLike, labels: ArrayLike | None = None) -> Floats:
    """Logits in double precision, after the checks that all functions make."""
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 2 or not z.size:
        raise UsageError(
            f"logits of shape {z.shape} are not (images, classes)", "give one image or more"
        )
    if not np.isfinite(z).all():
        raise UsageError(
            "the logits for the calibration are not finite", "use the checkpoint of another epoch"
        )
    if labels is not None:
        y = np.asarray(labels)
        if (
            y.shape != z.shape[:1]
            or y.dtype.kind not in "iu"
            or y.min() < 0
            or y.max() >= z.shape[1]
        ):
            fault = (
                f"the labels of the calibration images are not {len(z)} numbers of the "
                f"{z.shape[1]} classes"
            )
            raise UsageError(fault, "give images of the model's classes")
    return z


@dataclass(frozen=True)
class Temperature:
    """One number that divides all logits (Guo et al., ICML 2017); other classes of the model have
    the same one.
    """

    temperature: Annotated[float, Accepts(float, 1 / HOTTEST, HOTTEST)]

    @classmethod
    def fit(cls, logits: ArrayLike, labels: ArrayLike, weights: Floats | None = None) -> Self:
        """The temperature of least mean cross-entropy, which is convex in the inverse temperature.

        `weights` (images,) are how much each image counts; by default all count the same.

        It is 1 if no image is wrong: then any smaller one is still better, and nothing says where
        to stop. A model that is worse than chance has the largest, `HOTTEST`.
        """
        from scipy.optimize import brentq

        z = checked(logits, labels)
        y = np.asarray(labels)
        of_label = z[np.arange(len(z)), y]
        if (of_label == z.max(axis=1)).all():
            return cls(1.0)

        def slope(log_inverse: float) -> float:  # of the cross-entropy, by the inverse temperature
            of_image = (softmax(math.exp(log_inverse) * z) * z).sum(axis=1) - of_label
            return float(np.average(of_image, weights=weights))

        limit = math.log(HOTTEST)
        if slope(-limit) >= 0:
            return cls(HOTTEST)
        if slope(limit) <= 0:
            return cls(1 / HOTTEST)
        return cls(math.exp(-brentq(slope, -limit, limit, xtol=1e-12)))

    def surer(self, logits: ArrayLike, by: float, weights: Floats | None = None) -> Self:
        """The temperature at which the mean confidence in these images is higher by so much, at
        most 1.

        For a model that has learned from more images than those whose logits these are, and is
        right more often.
        """
        from scipy.optimize import brentq

        z = checked(logits)

        def confidence(log_temperature: float) -> float:
            return float(
                np.average(softmax(z / math.exp(log_temperature)).max(axis=1), weights=weights)
            )

        now = math.log(self.temperature)
        least = max(now - math.log(100), -math.log(HOTTEST))
        asked = min(confidence(now) + by, 1.0)
        if by <= 0 or confidence(least) <= asked:
            return self
        return type(self)(math.exp(brentq(lambda t: confidence(t) - asked, least, now, xtol=1e-9)))

    def apply(self, logits: ArrayLike) -> Floats:
        """(images, classes) -> the same, divided by the temperature."""
        return np.asarray(logits, dtype=np.float64) / self.temperature


def upper_bound(errors: ArrayLike, images: ArrayLike, confidence: float) -> Floats:
    """The one-sided bound of Clopper and Pearson on an error rate; it is 1 if all images are
    wrong.
    """
    from scipy.stats import beta

    k = np.asarray(errors)
    n = np.asarray(images)
    return np.where(k < n, beta.ppf(confidence, k + 1, np.maximum(n - k, 1)), 1.0)


def fewest_images(error: float, confidence: float) -> int:
    """How many images, all of them right, promise an error rate of at most `error`."""
    return math.ceil(round(min(math.log1p(-confidence) / math.log1p(-error), 1e18), 10))


@dataclass(frozen=True)
class Threshold:
    """Answer where the `log_odds` of the largest probability are above `least_log_odds`; else the
    image is unknown.

    Among the answers to images like those of the calibration, at most the share `error` is wrong.
    This fails for at most the share 1 - `confidence` of the sets of images on which one may fit.
    `answered` is how many calibration images it answers, `wrong` how many of these are wrong.
    """

    least_log_odds: float
    error: Share
    confidence: Share
    answered: Count
    wrong: Count

    @classmethod
    def fit(
        cls,
        logits: ArrayLike,
        labels: ArrayLike,
        error: float = 0.05,
        confidence: float = 0.95,
        sample: Sample | None = None,
    ) -> Self:
        """The threshold that answers most of the calibration images.

        `counts_to_try` does not depend on the logits. Each must pass the bound of Clopper and
        Pearson at the confidence that Bonferroni's correction leaves; UsageError if none does. With
        a `sample`, errors are counted by its weights, of as many images as are independent (Korn
        and Graubard, 1998).
        """
        check_share("the asked error", error)
        check_share("the confidence", confidence)
        z = checked(logits, labels)
        sample = sample or Sample.of(labels)
        wrong = z.argmax(axis=1) != np.asarray(labels)
        found = cls._least(z, wrong, error, confidence, sample)
        if found:
            return found
        images = math.floor(sample.size)
        of = "1 image" if images == 1 else f"{images} images"
        fault = f"{of} cannot promise an error of at most {100 * error:g}%"
        needed = fewest_images(error, confidence)
        remedy = "give more images"
        if images < needed:
            remedy = f"give at least {needed}"
        else:
            fault += ": too many of the most certain answers are wrong"
        for percent in range(math.floor(100 * error) + 1, 51):
            if found := cls._least(z, wrong, percent / 100, confidence, sample):
                remedy += f", or ask for {percent}%, which answers {found.answered} of {len(z)}"
                break
        raise UsageError(fault, remedy)

    @classmethod
    def _least(
        cls,
        z: Floats,
        is_wrong: NDArray[np.bool_],
        error: float,
        confidence: float,
        sample: Sample,
    ) -> Self | None:
        """The least threshold that promises the error; None if there is none."""
        counts = counts_to_try(math.floor(sample.size), error, confidence)
        if not counts:
            return None
        each_confidence = 1 - (1 - confidence) / len(counts)
        certainty = log_odds(z)
        # Every image exceeds the first one
        for least in (-math.log(z.shape[1]), *least_certain(certainty, sample, counts[1:])):
            given = certainty > least
            if not given.any():
                continue
            part = sample.part(given)
            wrong = round(part.mean(is_wrong[given].astype(float)) * part.size, 6)
            if upper_bound(wrong, part.size, each_confidence) <= error:
                return cls(least, error, confidence, int(given.sum()), int(is_wrong[given].sum()))
        return None

    def apply(self, logits: ArrayLike) -> NDArray[np.bool_]:
        """(images, classes) -> (images,): whether to answer."""
        return log_odds(logits) > self.least_log_odds


def least_certain(certainty: Floats, sample: Sample, counts: Sequence[int]) -> list[float]:
    """For each count, the certainty of the next image after this number of most certain ones."""
    order = np.argsort(-certainty, kind="stable")
    # Images that are at least as certain
    up_to = np.cumsum(sample.weights[order]) * sample.size
    places = np.searchsorted(up_to, np.array(counts) + 1 - 1e-6)
    return certainty[order[places]].tolist()


def counts_to_try(images: int, error: float, confidence: float) -> list[int]:
    """How many of the most certain images a threshold may answer: all, 90%, ..., as long as so many
    could pass the bound; none if all images are too few.
    """
    if images < fewest_images(error, confidence):
        return []
    counts = [images]
    for share in range(LEVELS - 1, 0, -1):
        count = images * share // LEVELS
        if count < fewest_images(error, 1 - (1 - confidence) / (len(counts) + 1)):
            break
        counts.append(count)
    return counts


def check_share(name: str, value: float) -> None:
    """Raise UsageError unless a value is between 0 and 1."""
    if not 0 < value < 1:  # also for NaN
        raise UsageError(f"{name} is {value:g}", "give a number between 0 and 1")
