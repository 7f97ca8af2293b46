"""Published choices of images to label, which `measures/labelling.py` was compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

from measures.labelling import Floats, Places, Pool, clusters_of, filled, k_center, random

PURE = 0.95  # the share of images in whose ball all images are of one cluster
OVERSAMPLE = 25  # candidates of DropQuery for each label
DROPOUT = 0.75
PASSES = 3  # of DropQuery's head


@dataclass(frozen=True, eq=False)
class PoolWithTexts(Pool):
    """A pool with (classes, width), of unit length, or the weights of a linear head."""

    texts: Floats | None = None


def entropy(pool: Pool) -> Floats:
    return -(np.exp(pool.logs) * pool.logs).sum(axis=1)


def probcover(pool: Pool, budget: int, radius: float | None = None) -> Places:
    """The image in whose ball most images are in no ball of a labelled one (Yehuda et al., NeurIPS
    2022); k-center, once all images are in one.
    """
    if radius is None:
        radius = pure_radius(pool)
    graph = NearestNeighbors(radius=radius).fit(pool.features).radius_neighbors_graph()
    graph.setdiag(1)
    graph = graph.tocsr()
    open_places = np.ones(len(pool.features))
    open_places[graph[list(pool.labelled)].indices] = 0
    picks: Places = []
    while len(picks) < budget and open_places.any():
        place = int(np.where(pool.free, graph @ open_places, -1).argmax())
        picks.append(place)
        open_places[graph[place].indices] = 0
    return filled(pool, picks, budget, k_center)


def pure_radius(pool: Pool) -> float:
    """The largest radius at which the balls of the share PURE of the images are in one of as many
    clusters as there are classes.
    """
    clusters = clusters_of(pool.features, pool.logits.shape[1], pool.seed)
    to_others = np.empty(len(clusters))
    for cluster in np.unique(clusters):
        own = clusters == cluster
        rows = pool.features[own]
        to_others[own] = pairwise_distances_argmin_min(rows, pool.features[~own])[1]
    return float(np.quantile(to_others, 1 - PURE, method="lower"))


def badge(pool: Pool, budget: int) -> Places:
    """k-means++ over the gradients that guessed labels would give (Ash et al., ICLR 2020), whose
    products are those of errors and of features.
    """
    places = np.flatnonzero(pool.free)
    rows = pool.features[places].astype(np.float64)
    errors = -np.exp(pool.logs[places])
    errors[np.arange(len(places)), pool.logs[places].argmax(axis=1)] += 1
    lengths = np.square(errors).sum(axis=1) * np.square(rows).sum(axis=1)
    draws = np.random.RandomState(pool.seed)
    picks = [int(lengths.argmax())]
    near = np.full(len(places), np.inf)
    while len(picks) < budget:
        last = picks[-1]
        products = (errors @ errors[last]) * (rows @ rows[last])
        near = np.minimum(near, np.maximum(lengths + lengths[last] - 2 * products, 0))
        near[picks] = 0
        if not near.any():
            break
        sums = np.cumsum(near / near.sum())
        while (drawn := int(np.searchsorted(sums, draws.uniform()))) in picks:
            pass
        picks.append(min(drawn, len(places) - 1))
    return filled(pool, places[picks].tolist(), budget, k_center)


def dropquery(
    pool: PoolWithTexts, budget: int, start: Sequence[int] | None = None, dropout: float = DROPOUT
) -> Places:
    """Images whose answer changes if features are dropped, of each of their clusters the middle one
    (Gupte et al., TMLR 2024). Its head is `texts` of the pool.
    """
    assert pool.texts is not None
    places = np.flatnonzero(pool.free)
    rows = pool.features[places]
    answers = pool.logits[places].argmax(axis=1)
    draws = np.random.default_rng(pool.seed)
    changed = np.zeros(len(places), dtype=int)
    for _ in range(PASSES):
        logits = (rows * (draws.random(rows.shape) >= dropout)) @ pool.texts.T
        changed += logits.argmax(axis=1) != answers
    level = 1
    while level and (changed > level).sum() < OVERSAMPLE * budget:
        level -= 1
    found = places[changed > level]
    if len(found) >= budget:
        return found[middles(pool.features[found], budget, pool.seed, start)].tolist()
    return filled(pool, found.tolist(), budget, random)


def middles(rows: NDArray[Any], budget: int, seed: int, start: Sequence[int] | None) -> Places:
    """The places of the rows in the middle of clusters, which begin with the rows of `start`."""
    if start is None:
        return nearest_to_centres(rows, clusters_of(rows, budget, seed))
    means = KMeans(budget, init=rows[list(start)], n_init=1, max_iter=100, random_state=seed)
    return nearest_to_centres(rows, means.fit_predict(rows))


def shares_of(
    labels: NDArray[Any], sizes: NDArray[Any], is_open: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(clusters,): labels for each image; infinite where no image is left."""
    return np.where(is_open, labels / np.maximum(sizes, 1), np.inf)


def class_guided(pool: PoolWithTexts, budget: int, clusters: NDArray[Any] | None = None) -> Places:
    """The middle images of clusters with few labels, in features beside the texts that the answers
    mean (Kim et al.).
    """
    assert pool.texts is not None
    rows = np.concatenate([pool.features, np.exp(pool.logs) @ pool.texts], axis=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if clusters is None:
        clusters = clusters_of(rows, pool.logits.shape[1] + len(pool.labelled), pool.seed)
    sizes = np.bincount(clusters)
    asked = np.bincount(clusters[list(pool.labelled)], minlength=len(sizes))
    left = np.bincount(clusters[pool.free], minlength=len(sizes))
    quota = np.zeros(len(sizes), dtype=int)
    for _ in range(budget):
        quota[np.lexsort((-sizes, shares_of(asked + quota, sizes, left > quota)))[0]] += 1
    picks: Places = []
    for cluster in np.flatnonzero(quota):
        members = np.flatnonzero((clusters == cluster) & pool.free)
        centre = rows[clusters == cluster].mean(axis=0)
        members = members[(-rows[members] @ centre).argsort(kind="stable")]
        picks += members[: quota[cluster]].tolist()
    return picks


def pcoreset(pool: Pool, budget: int) -> Places:
    """k-center among the probabilities; without labels it begins with a random image."""
    first = None if len(pool.labelled) else random(pool, 1)[0]
    return k_center(replace(pool, features=np.exp(pool.logs)), budget, first)


def nearest_to_centres(rows: Floats, clusters: NDArray[Any]) -> Places:
    """Of each cluster the row that is nearest to its mean."""
    found = []
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        centre = rows[members].mean(axis=0, dtype=np.float64, keepdims=True)
        found.append(members[euclidean_distances(rows[members], centre)[:, 0].argmin()])
    return [int(place) for place in found]
