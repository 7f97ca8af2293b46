"""Which images of a pool to label next.

Features in, places of images out, in the order in which to ask for their labels. Ties go
to the first image.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

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
        labelled: places of images, in the order in which they were asked for.
        seed: of random draws.
    """

    features: Floats
    labelled: Sequence[int] = ()
    seed: int = 0

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """(images,): whether an image has no label."""
        free = np.ones(len(self.features), dtype=bool)
        free[list(self.labelled)] = False
        return free

    def after(self, picks: Sequence[int]) -> "Pool":
        """The same pool once these images have labels."""
        return replace(self, labelled=[*self.labelled, *picks])


def choose_images(
    features: Floats,
    labelled: Sequence[int],
    budget: int,
    seed: int = 0,
    method: str = "whitened-herding",
) -> Places:
    """The places of `budget` images to label next, by a method of METHODS; so many have no
    label.
    """
    return METHODS[method](Pool(features, labelled, seed), budget)


def random(pool: Pool, budget: int) -> Places:
    rng = np.random.default_rng([pool.seed, len(pool.labelled)])
    return rng.permutation(np.flatnonzero(pool.free))[:budget].tolist()


# By features


def k_center(pool: Pool, budget: int) -> Places:
    """The image that is farthest from all labelled ones, again and again (Sener and Savarese, ICLR
    2018); one has a label.
    """
    rows = pool.features
    near = pairwise_distances_argmin_min(rows, rows[list(pool.labelled)])[1]
    near[~pool.free] = -1
    picks: Places = []
    while len(picks) < budget:
        place = int(near.argmax())
        picks.append(place)
        near = np.minimum(near, euclidean_distances(rows, rows[place : place + 1])[:, 0])
        near[place] = -1
    return picks


def herding(pool: Pool, budget: int, radius: float) -> Places:
    """The image whose ball covers the pool most, again and again (MaxHerding, Bae et al., ECCV
    2024), computed lazily: what an image adds only falls.

    Args:
        radius: of a soft ball.
    """
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
    picks = drawn[greedy(kernel, covered, np.flatnonzero(free), budget)].tolist()
    rest = budget - len(picks)
    return picks + (k_center(pool.after(picks), rest) if rest else [])


def whitened_herding(pool: Pool, budget: int) -> Places:
    """MaxHerding by whitened features: else images that differ in what CLIP attends to little are
    in one ball.
    """
    pool = replace(pool, features=whitened(pool.features))
    return herding(pool, budget, max(LEAST_RADIUS, auto_radius(pool, budget)))


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


def greedy(kernel: Floats, covered: Floats, candidates: NDArray[Any], budget: int) -> Places:
    """The rows that cover most, one after another.

    Args:
        kernel: (rows, rows), how much a row covers another one.
        covered: (rows,), how much of each is covered already.
    """

    def gain(row: int) -> float:
        return float(np.maximum(kernel[row] - covered, 0).sum())

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


METHODS: dict[str, Callable[[Pool, int], Places]] = {
    "whitened-herding": whitened_herding,
    "random": random,
}
