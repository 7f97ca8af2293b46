"""Repaired confidence, and what a classifier can promise: fitted on held-out images.

- `Temperature` changes probabilities, and never the predicted class.
- `Threshold`: which answers to give, so that at most an asked share of the given ones is wrong.
- `Sets`: classes for an image, among which is the right one for an asked share of the images.

All functions take arrays or tensors on the CPU: logits (images, classes), and labels (images,).
They raise UsageError for logits that are not finite and for labels that are no classes. `Threshold`
and `Sets` read the logits before any repair, so that their promises hold on the same images on
which a temperature is fitted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import UsageError, check_name
from common.records import Count
from common.schema import Accepts

from .sample import Floats, Sample

HOTTEST = 1e6  # the largest temperature; the smallest is its inverse
KINDS = ("lac", "aps", "raps")
FEWEST_OF_CLASS = 20  # calibration images of a class with sets of its own
RAPS = 0.001, 1  # the penalty for a rank, and the number of ranks without one
TRIFLE = 1e-12  # no difference between scores
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
            what = (
                f"the labels of the calibration images are not {len(z)} numbers of the "
                f"{z.shape[1]} classes"
            )
            raise UsageError(what, "give images of the model's classes")
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
        counts = counts_to_try(math.floor(sample.size), error, confidence)
        each_confidence = 1 - (1 - confidence) / len(counts)
        certainty = log_odds(z)
        is_wrong = z.argmax(axis=1) != np.asarray(labels)
        # Every image exceeds the first one
        for least in (-math.log(z.shape[1]), *least_certain(certainty, sample, counts[1:])):
            given = certainty > least
            if not given.any():
                continue
            if error_bound(sample.part(given), is_wrong[given], each_confidence) <= error:
                return cls(least, error, confidence, int(given.sum()), int(is_wrong[given].sum()))
        raise UsageError(
            f"no threshold promises an error of at most {100 * error:g}%: too many of the "
            f"{math.floor(sample.size)} images are wrong, also of the most certain",
            "ask for a larger error, or give more images",
        )

    def apply(self, logits: ArrayLike) -> NDArray[np.bool_]:
        """(images, classes) -> (images,): whether to answer."""
        return log_odds(logits) > self.least_log_odds


def least_certain(certainty: Floats, sample: Sample, counts: Sequence[int]) -> list[float]:
    """The certainty of the image after so many of the most certain ones, for each count."""
    order = np.argsort(-certainty, kind="stable")
    # Images that are at least as certain
    up_to = np.cumsum(sample.weights[order]) * sample.size
    places = np.searchsorted(up_to, np.array(counts) + 1 - 1e-6)
    return certainty[order[places]].tolist()


def counts_to_try(images: int, error: float, confidence: float) -> list[int]:
    """How many of the most certain images a threshold may answer: all, 90%, ..., as long as so many
    could pass the bound; UsageError if all images are too few.
    """
    needed = fewest_images(error, confidence)
    if images < needed:
        number = "1 image" if images == 1 else f"{images} images"
        what = f"{number} cannot promise an error of at most {100 * error:g}%"
        raise UsageError(what, f"give at least {needed}, or ask for a larger error")
    counts = [images]
    for share in range(LEVELS - 1, 0, -1):
        count = images * share // LEVELS
        if count < fewest_images(error, 1 - (1 - confidence) / (len(counts) + 1)):
            break
        counts.append(count)
    return counts


def error_bound(sample: Sample, is_wrong: NDArray[np.bool_], confidence: float) -> float:
    """The upper bound on the error rate of images like these, some of which are wrong (images,)."""
    wrong = sample.mean(is_wrong.astype(float)) * sample.size
    return float(upper_bound(round(wrong, 6), sample.size, confidence))


def check_share(name: str, value: float) -> None:
    """Raise UsageError unless a value is between 0 and 1."""
    if not 0 < value < 1:  # also for NaN
        raise UsageError(f"{name} is {value:g}", "give a number between 0 and 1")


def scores(
    probabilities: ArrayLike, kind: str, weights: Any = 0.0, raps: tuple[float, int] = RAPS
) -> Floats:
    """(images, classes): how badly each class conforms; a set has the classes of low scores.

    LAC (Sadinle et al., 2019): 1 - p. APS (Romano et al., NeurIPS 2020): the sum of the
    probabilities down to that of the class, minus `weights` times its own. RAPS (Angelopoulos et
    al., ICLR 2021): APS, and a penalty for each rank after the first ones (`raps`: the penalty, and
    how many have none).

    Args:
        weights: 0, or random numbers between 0 and 1 for the ranks of an image, (images, classes):
            the published u for test images, and 1 - u for the labels of calibration images.
    """
    check_name(kind, KINDS, "kind of set")
    p = np.asarray(probabilities, dtype=np.float64)
    if kind == "lac":
        return 1 - p
    order = np.argsort(-p, axis=1, kind="stable")
    falling = np.take_along_axis(p, order, axis=1)
    of_rank = np.cumsum(falling, axis=1) - weights * falling
    if kind == "raps":
        of_rank += raps[0] * np.maximum(np.arange(1, p.shape[1] + 1) - raps[1], 0)
    found = np.empty_like(p)
    np.put_along_axis(found, order, of_rank, axis=1)
    return found


def comparable(log_p: Floats, kind: str) -> Floats:
    """`scores` without ties: -log p instead of 1 - p (LAC), or a trifle of -log p added."""
    return -log_p if kind == "lac" else scores(np.exp(log_p), kind) - TRIFLE * log_p


def check_ascending(scores: Sequence[float]) -> None:
    """Raise ValueError unless there are scores, in ascending order."""
    if not scores or list(scores) != sorted(scores):
        raise ValueError("the scores of sets do not ascend")


@dataclass(frozen=True)
class Cluster:
    """Classes, by their numbers, that share the scores of their calibration images."""

    classes: tuple[int, ...]
    label_scores: tuple[float, ...]

    def __post_init__(self) -> None:
        check_ascending(self.label_scores)


@dataclass(frozen=True)
class Sets:
    """Sets of classes with the label in them for an asked share of the images (conformal
    prediction).

    Scores are `comparable`, and not random: the weights of APS and RAPS are 0. `label_scores` are
    those of the calibration images, ascending; of images that do not count the same, quantiles of
    their scores. Of the images of each cluster of classes, the asked share is covered, too. A set
    may be empty.

    Cross-conformal sets also have the fold and the label of each score, which is by the model that
    has not learned from this fold. They need the logits of these models.
    """

    kind: Annotated[str, Accepts(Literal["lac", "aps", "raps"])]
    label_scores: tuple[float, ...]
    clusters: list[Cluster] = field(default_factory=list)
    folds: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_ascending(self.label_scores)
        if self.folds and not len(self.folds) == len(self.labels) == len(self.label_scores):
            raise ValueError("the folds and labels are not those of the scores")

    @classmethod
    def fit(
        cls, logits: ArrayLike, labels: ArrayLike, kind: str = "lac", sample: Sample | None = None
    ) -> Self:
        return cls.of_scores(
            comparable(log_softmax(checked(logits, labels)), kind), labels, kind, sample
        )

    @classmethod
    def fit_by_class(
        cls, logits: ArrayLike, labels: ArrayLike, kind: str = "lac", sample: Sample | None = None
    ) -> Self:
        """Sets that have the label for the asked share of the images of each class (Vovk, 2012).

        Classes with fewer than FEWEST_OF_CLASS images or groups are one cluster, if that has so
        many; else they have no share of their own.
        """
        found = comparable(log_softmax(checked(logits, labels)), kind)
        y = np.asarray(labels)
        sample = sample or Sample.of(y)
        clusters = []
        rest: list[int] = []
        for classes in (*([label] for label in range(found.shape[1])), rest):
            inside = np.isin(y, classes)
            if inside.any() and sample.part(inside).size >= FEWEST_OF_CLASS:
                part = cls.of_scores(found[inside], y[inside], kind, sample.part(inside))
                clusters.append(Cluster(tuple(classes), part.label_scores))
            else:
                rest.extend(classes)
        return cls(kind, cls.of_scores(found, y, kind, sample).label_scores, clusters)

    @classmethod
    def of_scores(
        cls, found: Floats, labels: ArrayLike, kind: str, sample: Sample | None = None
    ) -> Self:
        """From the scores of the classes of calibration images, (images, classes).

        Of groups that count the same, each has the mass of one image, and its images share it
        (Dunn, Wasserman and Ramdas, JASA 2023: sets for a new image of a new group).
        """
        of_label = found[np.arange(len(found)), np.asarray(labels)]
        if sample is None:
            return cls(kind, tuple(np.sort(of_label).tolist()))
        order = np.argsort(of_label)
        size = math.floor(sample.size)
        up_to = np.cumsum(sample.weights[order])
        places = np.searchsorted(up_to, np.arange(1, size + 1) / size - 1e-9)
        return cls(kind, tuple(of_label[order[np.minimum(places, len(order) - 1)]].tolist()))

    def of_folds(
        self, logits: ArrayLike, labels: NDArray[np.int64], folds: NDArray[np.int64]
    ) -> Self:
        """Cross-conformal sets of the same kind and clusters, from the logits of calibration images
        (images, classes) by the models that have not learned from their folds (images,).
        """
        found = comparable(log_softmax(checked(logits, labels)), self.kind)
        of_label = found[np.arange(len(found)), labels]
        rows = sorted(zip(of_label.tolist(), folds.tolist(), labels.tolist(), strict=True))
        scores, of_score, label_of_score = zip(*rows, strict=True)
        return replace(self, label_scores=scores, folds=of_score, labels=label_of_score)

    def p_values(self, logits: Iterable[ArrayLike]) -> Floats:
        """(folds, images, classes) -> (images, classes): the cross-conformal p-value of each class
        (Vovk, 2015), among the calibration images of its cluster and the image itself: the share
        whose score is at least that of the class, both by the model of the fold.
        """
        found = np.stack([comparable(log_softmax(one), self.kind) for one in logits])
        scores = np.array(self.label_scores)
        p = np.empty_like(found[0])
        parts = [[*range(p.shape[1])], *([*cluster.classes] for cluster in self.clusters)]
        for some in parts:
            inside = np.isin(self.labels, some)
            counts = np.ones((len(p), len(some)))
            for fold, by_model in enumerate(found):
                ascending = scores[inside & (np.array(self.folds) == fold)]
                counts += len(ascending) - np.searchsorted(ascending, by_model[:, some])
            p[:, some] = counts / (inside.sum() + 1)
        return p

    def quantile(self, coverage: float) -> float:
        """The largest score in a set, by the exact rule: infinite if there are too few images for
        this coverage.
        """
        check_share("the asked coverage", coverage)
        return exact_quantile(self.label_scores, coverage)

    def apply(self, logits: Any, coverage: float) -> NDArray[np.bool_]:
        """(images, classes), from logits (images, classes) or, for cross-conformal sets, (folds,
        images, classes): whether a class is in the set of an image.
        """
        if self.folds:
            check_share("the asked coverage", coverage)
            return self.p_values(logits) > 1 - coverage + 1e-10
        return self.of(log_softmax(logits), coverage)

    def of(self, log_p: Floats, coverage: float) -> NDArray[np.bool_]:
        """`apply` for logarithms of probabilities, such as those of `transport.conf_ot`."""
        largest = np.full(log_p.shape[1], self.quantile(coverage))
        for cluster in self.clusters:
            largest[list(cluster.classes)] = exact_quantile(cluster.label_scores, coverage)
        return comparable(log_p, self.kind) <= largest


def exact_quantile(ascending: Sequence[float], coverage: float) -> float:
    """The score that a new one does not exceed with this probability; infinite for few scores."""
    rank = max(1, math.ceil(round((len(ascending) + 1) * coverage, 10)))
    return ascending[rank - 1] if rank <= len(ascending) else math.inf
