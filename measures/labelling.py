"""Which images of a pool to label next.

Features and logits in, places of images out, in the order in which to ask for their labels. Ties go
to the first image.
"""

import heapq
import random as python_random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

FEW_LABELS = 4  # of a class, up to which typical images are asked for
MOST_CLUSTERS = 500
FEW_CLUSTERS = 50  # up to which k-means reads all images in each step
SMALL_CLUSTER = 5  # images; such clusters are left out
NEIGHBOURS = 20  # of an image, which say how typical it is
KERNEL = 15_000  # images whose distances to one another are kept, or which represent a cluster
RADII = 2_000  # images whose neighbours say how large a ball is
SHRINK = 0.3  # of the mean variance, which whitening adds to that of each direction
LEAST_RADIUS = 0.05  # below it, copies of an image would be the only ones in its ball
Floats = NDArray[np.floating[Any]]
Places = list[int]


@dataclass(frozen=True, eq=False)
class Pool:
    """Images, some of which are labelled.

    Attributes:
        features: (images, width), of unit length.
        logits: (images, classes), of the classifier as it is now; at first zero-shot CLIP.
        labelled: places of images, in the order in which they were asked for.
        seed: of k-means and of random draws.
        classes: the labels of the labelled images; PCB balances them.
    """

    features: Floats
    logits: Floats
    labelled: Sequence[int] = ()
    seed: int = 0
    classes: Sequence[int] = ()

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """(images,): whether an image has no label."""
        free = np.ones(len(self.features), dtype=bool)
        free[list(self.labelled)] = False
        return free

    @cached_property
    def logs(self) -> Floats:
        """(images, classes): the logarithms of the probabilities."""
        return log_softmax(self.logits.astype(np.float64), axis=1)

    def after(self, picks: Sequence[int]) -> "Pool":
        """The same pool once these images have labels."""
        return replace(self, labelled=[*self.labelled, *picks])


def choose(
    features: Floats,
    logits: Floats,
    labelled: Sequence[int],
    budget: int,
    seed: int = 0,
    method: str = "whitened-herding",
) -> Places:
    """The places of `budget` images to label next, by a method of METHODS.

    Raises:
        ValueError: fewer images than that have no label, or a number is not finite.
    """
    if not (np.isfinite(features).all() and np.isfinite(logits).all()):
        raise ValueError("a feature or a logit is not finite")
    pool = Pool(features, logits, labelled, seed)
    if budget > pool.free.sum():
        raise ValueError(f"{budget} labels are more than {pool.free.sum()} images")
    return METHODS[method](pool, budget)


def typical_then_uncertain(pool: Pool, budget: int) -> Places:
    """TypiClust while there are fewer than FEW_LABELS labels for each class, then UHerding."""
    few = len(pool.labelled) < FEW_LABELS * pool.logits.shape[1]
    return typiclust(pool, budget) if few else u_herding(pool, budget)


def clusters_of(rows: Floats, number: int, seed: int) -> NDArray[Any]:
    """(rows,): the number of the cluster of each row, by k-means."""
    if number <= FEW_CLUSTERS:
        means = KMeans(number, n_init=1, max_iter=100, random_state=seed)
    else:
        means = MiniBatchKMeans(number, batch_size=5000, n_init=1, random_state=seed)
    return means.fit_predict(rows)


def filled(pool: Pool, picks: Places, budget: int, method: Callable[[Pool, int], Places]) -> Places:
    """The picks and, if they are too few, other images by a method."""
    rest = budget - len(picks)
    return picks + (method(pool.after(picks), rest) if rest else [])


# By scores


def random(pool: Pool, budget: int) -> Places:
    rng = np.random.default_rng([pool.seed, len(pool.labelled)])
    return rng.permutation(np.flatnonzero(pool.free))[:budget].tolist()


def margin(pool: Pool) -> Floats:
    largest = np.exp(np.partition(pool.logs, -2, axis=1)[:, -2:])
    return largest[:, 0] - largest[:, 1]


def uncertain(pool: Pool, budget: int, score: Callable[[Pool], Floats] = margin) -> Places:
    """The images without a label of the largest score."""
    places = np.flatnonzero(pool.free)
    order = (-score(pool)[places]).argsort(kind="stable")
    return places[order[:budget]].tolist()


# By features


def k_center(pool: Pool, budget: int, first: int | None = None) -> Places:
    """The image that is farthest from all labelled ones, again and again (Sener and Savarese, ICLR
    2018); without labels, the `first` is the one nearest to the mean.
    """
    rows = pool.features
    near = np.full(len(rows), np.inf)
    if len(pool.labelled):
        near = pairwise_distances_argmin_min(rows, rows[list(pool.labelled)])[1]
    elif first is None:
        first = int(euclidean_distances(rows, rows.mean(axis=0, keepdims=True)).argmin())
    near[~pool.free] = -1
    picks: Places = []
    while len(picks) < budget:
        place = int(near.argmax()) if first is None or picks else first
        picks.append(place)
        near = np.minimum(near, euclidean_distances(rows, rows[place : place + 1])[:, 0])
        near[place] = -1
    return picks


def typiclust(
    pool: Pool,
    budget: int,
    clusters: NDArray[Any] | None = None,
) -> Places:
    """The most typical image of each cluster without a label, then of clusters with few (Hacohen et
    al., ICML 2022).
    """
    if clusters is None:
        number = min(len(pool.labelled) + budget, MOST_CLUSTERS)
        clusters = clusters_of(pool.features, number, pool.seed)
    sizes = np.bincount(clusters)
    labels = np.bincount(clusters[list(pool.labelled)], minlength=len(sizes))
    order = [one for one in np.lexsort((-sizes, labels)) if sizes[one] > SMALL_CLUSTER]
    free = pool.free.copy()
    picks: Places = []
    while len(picks) < budget and order:
        for cluster in list(order):
            members = np.flatnonzero((clusters == cluster) & free)
            if not len(members):
                order.remove(cluster)
            elif len(picks) < budget:
                picks.append(int(members[typicality(pool.features[members]).argmax()]))
                free[picks[-1]] = False
    return filled(pool, picks, budget, herding)


def typicality(rows: Floats) -> Floats:
    """(rows,): the inverse of the mean squared distance to the nearest other rows."""
    count = min(NEIGHBOURS, len(rows) // 2)
    if not count:
        return np.ones(len(rows))
    others = rows
    if len(rows) > KERNEL:
        others = rows[np.random.default_rng(0).choice(len(rows), KERNEL, replace=False)]
    near = NearestNeighbors(n_neighbors=count + 1).fit(others).kneighbors(rows)[0]
    return 1 / (1e-5 + np.square(near[:, 1:]).mean(axis=1))


def herding(
    pool: Pool, budget: int, radius: float | None = None, weights: Floats | None = None
) -> Places:
    """The image whose ball covers the pool most, again and again (MaxHerding, Bae et al., ECCV
    2024), computed lazily: what an image adds only falls.

    Args:
        radius: of a soft ball; None for `auto_radius`.
        weights: (images,), how much an image counts.
    """
    radius = max(LEAST_RADIUS, auto_radius(pool, budget) if radius is None else radius)
    drawn = np.arange(len(pool.features))
    if len(drawn) > KERNEL:
        drawn = np.sort(np.random.default_rng(pool.seed).choice(drawn, KERNEL, replace=False))
    rows = pool.features[drawn]
    free = pool.free[drawn]
    kernel = ball(rows, rows, radius)
    np.fill_diagonal(kernel, 1)
    covered = np.zeros(len(rows))
    if len(pool.labelled):
        of_labels = ball(rows, pool.features[list(pool.labelled)], radius).max(axis=1)
        covered = np.where(free, of_labels, 1)
    counts = np.ones(len(rows)) if weights is None else weights[drawn]
    picks = drawn[greedy(kernel, covered, counts, np.flatnonzero(free), budget)].tolist()
    return filled(pool, picks, budget, k_center)


def whitened_herding(pool: Pool, budget: int) -> Places:
    """MaxHerding by whitened features: else images that differ in what CLIP attends to little are
    in one ball.
    """
    return herding(replace(pool, features=whitened(pool.features)), budget)


def whitened(features: Floats) -> Floats:
    """(images, width), of unit length: features of which each direction has about the same
    variance.
    """
    features = features.astype(np.float32)  # those of banks may be float16
    centred = features - features.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    values = values.clip(min=0)
    added = max(SHRINK * values.mean(), np.finfo(np.float32).tiny)
    return normalize(centred @ (vectors / np.sqrt(values + added)))


def greedy(
    kernel: Floats, covered: Floats, counts: Floats, candidates: NDArray[Any], budget: int
) -> Places:
    """The rows that cover most, one after another.

    Args:
        kernel: (rows, rows), how much a row covers another one.
        covered: (rows,), how much of each is covered already.
        counts: (rows,), how much each counts.
    """

    def gain(row: int) -> float:
        return float(counts @ np.maximum(kernel[row] - covered, 0))

    heap = [(-gain(row), row) for row in candidates.tolist()]
    heapq.heapify(heap)
    picks: Places = []
    while len(picks) < budget and heap:
        before, row = heap[0]
        now = -gain(row)
        if now > before:
            heapq.heapreplace(heap, (now, row))
        else:
            heapq.heappop(heap)
            picks.append(row)
            covered = np.maximum(covered, kernel[row])
    return picks


def u_herding(pool: Pool, budget: int, radius: float | None = None) -> Places:
    """MaxHerding in which images count as far as the classifier is unsure of them (UHerding, ICLR
    2025); without labels all count.
    """
    if not len(pool.labelled):
        return herding(pool, budget, radius)
    unsure = 1 + margin(pool)
    return herding(pool, budget, radius, np.where(pool.free, unsure, 0))


def ball(rows: Floats, others: Floats, radius: float) -> Floats:
    """(rows, others): how far other rows are in the soft ball of a row."""
    found = euclidean_distances(rows, others)
    found /= radius
    np.square(found, out=found)
    np.negative(found, out=found)
    return np.exp(found, out=found)


def auto_radius(pool: Pool, budget: int) -> float:
    """The radius of a ball with as many images as each label represents."""
    count = len(pool.features)
    number = min(count - 1, max(1, count // (len(pool.labelled) + budget)))
    rows = pool.features
    if count > KERNEL:
        rows = rows[np.random.default_rng(pool.seed).choice(count, RADII, replace=False)]
    near = NearestNeighbors(n_neighbors=number + 1).fit(pool.features).kneighbors(rows)[0]
    return float(np.median(near[:, number]))


# By logits


def pseudo(pool: Pool, budget: int) -> Places:
    """Random images, balanced by the classifier's guesses."""
    return pcb(pool, budget, np.flatnonzero(pool.free).tolist())


def pcb(pool: Pool, budget: int, candidates: Sequence[int]) -> Places:
    """Candidates, balanced by the classifier's guesses (Bang et al., CVPR 2024); a class without a
    candidate is passed over.
    """
    guesses = pool.logs.argmax(axis=1)
    counts = np.bincount(pool.classes, minlength=pool.logits.shape[1]).astype(float)
    chance = python_random.Random(pool.seed)
    picks: Places = []
    while len(picks) < budget:
        label = int(counts.argmin())
        listed = [place for place in candidates if guesses[place] == label]
        chance.shuffle(listed)
        left = [place for place in listed if place not in picks]
        if left:
            picks.append(left[0])
            counts[label] += 1
        elif np.isinf(counts).all():
            break
        else:
            counts[label] = np.inf
    return filled(pool, picks, budget, random)


METHODS: dict[str, Callable[[Pool, int], Places]] = {
    "whitened-herding": whitened_herding,
    "typical-then-uncertain": typical_then_uncertain,
    "typiclust": typiclust,
    "herding": herding,
    "uherding": u_herding,
    "random": random,
    "pseudo": pseudo,
}
