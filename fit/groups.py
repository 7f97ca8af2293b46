"""Groups: images of one scene, which folds keep together and an estimate counts once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets import copies

from .features import Row
from .rows import Photo

NOT_KNOWN = "Near-copies are not known: the bank was written without --look"


class Groups(NamedTuple):
    """Which photos show one scene.

    Attributes:
        scenes: (photos,), the number of each one's scene, from 0.
        certain: (photos,), the same if images with too little structure to decide are apart.
        reasons: how many training images were joined for which reason, for people.
    """

    scenes: NDArray[np.int64]
    certain: NDArray[np.int64]
    reasons: str


def find(photos: Sequence[Photo], rows: Mapping[str, Row], looks: bool = True) -> Groups:
    """The groups of photos.

    They are found by the names that the user gives them, by the time when they were taken, and by
    their look.

    Args:
        rows: what is known of each photo, by its path.
        looks: whether it is known how they look and when they were taken.
    """
    inside = np.array([photo.part != "test" for photo in photos])
    links = {"by the names of groups": same_name(photos)}
    if not looks:
        scenes = copies.components(len(photos), [*links.values()])
        return Groups(scenes, scenes, reasons_of(links, inside))
    labels = np.unique([photo.label for photo in photos], return_inverse=True)[1]
    of_photos = [rows[photo.path] for photo in photos]
    by_time = copies.bursts([row.taken for row in of_photos], labels.tolist())
    near = near_copies(of_photos, labels)
    links |= {"by the time when they were taken": by_time, "as near-copies": near.pairs}
    certain = copies.components(len(photos), [*links.values()])
    links["by a guess"] = near.guessed(certain, labels, inside)
    scenes = copies.components(len(photos), [*links.values()])
    return Groups(scenes, certain, reasons_of(links, inside))


def reasons_of(links: Mapping[str, copies.Pairs], inside: NDArray[np.bool_]) -> str:
    """How many of the photos `inside` (photos,) were joined for which reason, for people."""
    reasons = []
    for reason, pairs in links.items():
        if count := len(np.unique(pairs[inside[pairs].all(axis=1)])):
            reasons.append(f"{count:,} {reason}")
    return ", ".join(reasons)


def looks_known(photos: Sequence[Photo], rows: Mapping[str, Row]) -> bool:
    """Whether it is known how the photos that have a row look, and when they were taken: some banks
    do not say it.
    """
    return all(photo.pixels_sha256 for photo in photos if photo.bank and photo.path in rows)


def near_copies(rows: Sequence[Row], labels: NDArray[np.int64]) -> copies.NearCopies:
    """The near-copies among images with these labels (images,)."""
    signatures = np.stack([row.signature for row in rows])
    features = np.stack([row.feature.numpy() for row in rows])
    return copies.NearCopies.of(signatures, features, labels)


def same_name(photos: Sequence[Photo]) -> copies.Pairs:
    """Pairs of photos of one named group, each with the first of the group."""
    first: dict[str, int] = {}
    pairs = []
    for place, photo in enumerate(photos):
        if photo.group:
            pairs.append((first.setdefault(photo.group, place), place))
    different = [pair for pair in pairs if pair[0] != pair[1]]
    return np.array(different, dtype=np.int64).reshape(-1, 2)


def firsts(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of the first image of each scene, by the numbers of scenes (images,)."""
    return np.sort(np.unique(numbers, return_index=True)[1])


def numbers(photos: Sequence[Photo]) -> NDArray[np.int64]:
    """(photos,): the number of each photo's scene; one that has none is a scene of its own."""
    scenes: list[Any] = [photo.path if photo.scene is None else photo.scene for photo in photos]
    return copies.numbered(np.array([str(scene) for scene in scenes]))
