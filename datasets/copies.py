"""Near-copies: images of one scene, such as a burst, frames of a video, crops, mirrored and
re-saved files.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .image_facts import Floats, Pairs, Taken, similarities, structure

NEIGHBOURS = 32  # images that are compared with an image: those with the most similar features
QUERIES = 256  # images whose neighbours in other classes show how similar other scenes are
NULL_NEIGHBOURS = 16  # of each of them
NOT_COPIES = 0.97  # the share of these that must not look like copies
# Of the threshold
LEAST = 0.5
MOST = 0.8
CHANCE = 0.02  # that a class without near-copies has as many pairs above its threshold
BANDS = 0.7, 0.85  # times the threshold: where two bands of pairs begin that are not joined
PLAIN = 0.8  # similarity of an image with itself after noise: copies of others are recognised
# The least number of images without doubt from which the share of scenes among images is found, and
# that share where there are fewer
LEAST_KNOWN = 10
USUAL_SHARE = 1 / 3
LARGEST = 1.5  # times the usual number of images of a scene: the largest group that is guessed
BURST = 3.0  # seconds between two photos, at most

NO_PAIRS: Pairs = np.empty((0, 2), dtype=np.int64)


def bursts(photos: Sequence[Taken], labels: Sequence[Any]) -> Pairs:
    """Pairs of images of one class that one camera took within BURST seconds, one after the other.

    If such neighbours often have different classes, the camera went from one object to the next,
    and time says nothing.
    """
    by_camera = defaultdict[int, list[int]](list)
    for place, photo in enumerate(photos):
        if photo.second == photo.second:  # no NaN
            by_camera[photo.camera].append(place)
    same = []
    other = 0
    for places in by_camera.values():
        places.sort(key=lambda place: photos[place].second)
        for _, at_once in groupby(places, key=lambda place: photos[place].second):
            classes = Counter(labels[place] for place in at_once)
            other += classes.total() - max(classes.values())
        for first, second in zip(places, places[1:], strict=False):
            if photos[second].second - photos[first].second > BURST:
                continue
            if labels[first] == labels[second]:
                same.append(sorted([first, second]))
            else:
                other += 1
    if other > len(same) / 2:
        return NO_PAIRS
    return np.array(same, dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class NearCopies:
    """Pairs of near-copies among images.

    Attributes:
        pairs: their places, each of one class.
        threshold: the similarity from which on two images are near-copies; found on images of
            different classes.
        plain: (images,), whether an image has too little structure for its copies to be recognised.
        alike: pairs of images of one class that may be near-copies: plain images, and images whose
            similarity is above BANDS[0] times the threshold; the most similar pairs first.
    """

    pairs: Pairs
    threshold: float
    plain: NDArray[np.bool_]
    alike: Pairs

    @classmethod
    def of(
        cls, signatures: NDArray[np.int8], features: Floats, labels: NDArray[Any]
    ) -> "NearCopies":
        """Near-copies among images. Time and memory grow with the number of images.

        Args:
            signatures: (images, *SHAPE).
            features: (images, width), of a frozen image tower. Images with similar ones are
                compared.
            labels: (images,), whole numbers. Only images of one class are joined.
        """
        plain = structure(signatures) < PLAIN
        if len(labels) < 2:
            return cls(NO_PAIRS, MOST, plain, NO_PAIRS)
        unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
        threshold = threshold_of(signatures, unit, labels)
        joined = []
        alike = []
        for label in np.unique(labels):
            places = np.flatnonzero(labels == label)
            compared = places[pairs_of(neighbours(unit[places]))]
            scores = similarities(signatures, compared)
            joined.append(compared[scores > raised(threshold, scores)])
            possible = plain[compared].all(axis=1) | (scores > BANDS[0] * threshold)
            alike.append(by_likeness(compared[possible], scores[possible], unit))
        return cls(np.concatenate(joined), threshold, plain, np.concatenate(alike))

    def guessed(
        self, groups: NDArray[np.int64], labels: NDArray[Any], inside: NDArray[np.bool_]
    ) -> Pairs:
        """Pairs of images `inside` (images,) with which each class has as many groups, for each
        image, as the other images. One image of a pair is plain or, where most images have copies,
        has none.

        Args:
            groups: (images,), by pairs that are certain.
            labels: (images,).
        """
        size = np.bincount(groups, inside)[groups]
        recognised = inside & ~self.plain
        usual = np.median(size[recognised]) if recognised.any() else 1
        is_stray = (size <= max(1, usual / 3)) & (usual >= 2)
        uncertain = inside & (self.plain | is_stray)
        known = size[inside & ~uncertain]
        share = float(np.mean(1 / known)) if len(known) >= LEAST_KNOWN else USUAL_SHARE
        pairs = self.alike[inside[self.alike].all(axis=1) & uncertain[self.alike].any(axis=1)]
        found = [NO_PAIRS]
        for label in np.unique(labels[uncertain]):
            of_class = inside & (labels == label)
            own = pairs[of_class[pairs[:, 0]]]
            wanted = max(2, round(share * of_class.sum()))
            found.append(merged(groups, of_class, own, wanted, LARGEST / share))
        return np.concatenate(found)


def by_likeness(pairs: Pairs, scores: Floats, unit: Floats) -> Pairs:
    """The pairs, the most similar first. Similarities of pixels (pairs,) and of features (images,
    width) have the same weight.
    """
    if not len(pairs):
        return pairs
    cosines = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)
    spreads = [max(float(values.std()), 1e-9) for values in (scores, cosines)]
    return pairs[np.argsort(-scores / spreads[0] - cosines / spreads[1], kind="stable")]


def merged(
    groups: NDArray[np.int64],
    inside: NDArray[np.bool_],
    pairs: Pairs,
    wanted: int,
    largest: float,
) -> Pairs:
    """The first of these pairs that merge the groups of images `inside` (images,) until so many are
    left, none with more than `largest` images.
    """
    from scipy.cluster.hierarchy import DisjointSet

    sizes = Counter(groups[inside].tolist())
    sets = DisjointSet(sizes)
    found = []
    for pair in pairs:
        if sets.n_subsets <= wanted:
            break
        one, other = map(sets.__getitem__, groups[pair].tolist())
        size = sizes[one] + sizes[other]
        if size <= largest and sets.merge(one, other):
            sizes[sets[one]] = size
            found.append(pair)
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def neighbours(unit: Floats) -> NDArray[np.int64]:
    """(images, at most NEIGHBOURS): the places of the rows (images, width) most similar to each,
    the best first.
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS, len(unit) - 1)
    if count < 1:
        return np.empty((len(unit), 0), dtype=np.int64)
    return (
        NearestNeighbors(n_neighbors=count, algorithm="brute")
        .fit(unit)
        .kneighbors(return_distance=False)
    )


def pairs_of(near: NDArray[np.int64]) -> Pairs:
    """Each pair of a row's number and a place in it, once."""
    rows = np.arange(len(near)).repeat(near.shape[1])
    return np.unique(np.sort(np.stack([rows, near.ravel()], axis=1), axis=1), axis=0)


def threshold_of(signatures: NDArray[np.int8], unit: Floats, labels: NDArray[Any]) -> float:
    """What hardly any image reaches with an image of another class, which is another scene."""
    queries = evenly(len(labels), QUERIES)
    others = evenly(len(labels), 8 * QUERIES)
    cosines = unit[queries] @ unit[others].T
    cosines[labels[queries][:, None] == labels[others]] = -np.inf
    count = min(NULL_NEIGHBOURS, len(others) - 1)
    near = np.argpartition(-cosines, count, axis=1)[:, :count]
    pairs = np.stack([queries.repeat(count), others[near].ravel()], axis=1)
    scores = similarities(signatures, pairs).reshape(len(queries), count)
    scores[~np.isfinite(np.take_along_axis(cosines, near, axis=1))] = 0
    return float(np.clip(np.quantile(scores.max(axis=1), NOT_COPIES), LEAST, MOST))


def evenly(images: int, most: int) -> NDArray[np.int64]:
    """At most `most` places among so many images."""
    return np.unique(np.linspace(0, images - 1, min(images, most)).astype(np.int64))


def raised(threshold: float, scores: Floats) -> float:
    """The threshold of a class: the usual one, or the first one above it that parts near-copies
    from other pairs.

    It does so if more pairs are above it than in the band below it, or more than the decline from
    band to band lets expect by chance. In a class whose pictures have one layout, such as rings,
    pairs become rarer slowly.
    """
    from scipy.stats import poisson

    for candidate in np.arange(threshold, 1, 0.02):
        counts = [int((scores > share * candidate).sum()) for share in (*BANDS, 1)]
        far = counts[0] - counts[1]
        near = counts[1] - counts[2]
        above = counts[2]
        decline = near / max(far, 1)
        others = near * decline / (1 - decline) if decline < 1 else np.inf
        if above >= near + far or not others or poisson.sf(above - 1, others) < CHANCE:
            return float(candidate)
    return 1.0


def components(images: int, links: Sequence[Pairs]) -> NDArray[np.int64]:
    """(images,): the number of each image's group, where linked images are in one group; from 0 by
    the first image.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([NO_PAIRS, *links])
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(images, images))
    _, groups = connected_components(graph, directed=False)
    return numbered(groups)


def numbered(groups: NDArray[Any]) -> NDArray[np.int64]:
    """The same groups, numbered from 0 in the order of their first images."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
