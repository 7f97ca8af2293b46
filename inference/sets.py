"""Sets of classes for an image, among which is the right one for an asked share of the images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import check_name
from common.schema import Accepts

from .calibration import check_share, checked, log_softmax
from .sample import Floats, Sample

KINDS = ("lac", "aps", "raps")
FEWEST_OF_CLASS = 20  # calibration images of a class with sets of its own
RAPS = 0.001, 1  # the penalty for a rank, and the number of ranks without one
TRIFLE = 1e-12  # no difference between scores


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
    """

    kind: Annotated[str, Accepts(Literal["lac", "aps", "raps"])]
    label_scores: tuple[float, ...]
    clusters: list[Cluster] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_ascending(self.label_scores)

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

    def quantile(self, coverage: float) -> float:
        """The largest score in a set, by the exact rule: infinite if there are too few images for
        this coverage.
        """
        check_share("the asked coverage", coverage)
        return exact_quantile(self.label_scores, coverage)

    def apply(self, logits: ArrayLike, coverage: float) -> NDArray[np.bool_]:
        """(images, classes), from logits (images, classes): whether a class is in the set of an
        image.
        """
        log_p = log_softmax(logits)
        largest = np.full(log_p.shape[1], self.quantile(coverage))
        for cluster in self.clusters:
            largest[list(cluster.classes)] = exact_quantile(cluster.label_scores, coverage)
        return comparable(log_p, self.kind) <= largest


def exact_quantile(ascending: Sequence[float], coverage: float) -> float:
    """The score that a new one does not exceed with this probability; infinite for few scores."""
    rank = max(1, math.ceil(round((len(ascending) + 1) * coverage, 10)))
    return ascending[rank - 1] if rank <= len(ascending) else math.inf
