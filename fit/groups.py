"""Groups: images of one scene, which folds keep together and an estimate counts once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets import copies

from .features import Row
from .rows import Photo

NOT_KNOWN = "Near-copies are not known: the bank was written without --look"


def find(
    photos: Sequence[Photo], rows: Mapping[str, Row], looks: bool = True
) -> tuple[NDArray[np.int64], str]:
    """The group of each photo, numbered from 0; and how many training images were joined for which
    reason.

    They are found by the names that the user gives them, by the time when they were taken, and by
    their look.

    Args:
        rows: what is known of each photo, by its path.
        looks: whether it is known how they look and when they were taken.
    """
    in_training = np.array([photo.part != "test" for photo in photos])
    links = {"by the names of groups": same_name(photos)}
    if looks:
        links |= links_of_looks(photos, [rows[photo.path] for photo in photos], in_training)
    reasons = []
    for reason, pairs in links.items():
        if count := len(np.unique(pairs[in_training[pairs].all(axis=1)])):
            reasons.append(f"{count:,} {reason}")
    return copies.components(len(photos), list(links.values())), ", ".join(reasons)


def looks_known(photos: Sequence[Photo], rows: Mapping[str, Row]) -> bool:
    """Whether it is known how the photos that have a row look, and when they were taken: some banks
    do not say it.
    """
    return all(photo.pixels_sha256 for photo in photos if photo.bank and photo.path in rows)


def links_of_looks(
    photos: Sequence[Photo], rows: Sequence[Row], in_training: NDArray[np.bool_]
) -> dict[str, copies.Pairs]:
    """Pairs of photos of one scene, by the reason to think so."""
    labels = np.unique([photo.label for photo in photos], return_inverse=True)[1]
    signatures = np.stack([row.signature for row in rows])
    features = np.stack([row.feature.numpy() for row in rows])
    by_time = copies.bursts([row.taken for row in rows], labels.tolist())
    near_copies = copies.NearCopies.of(signatures, features, labels).with_strays(in_training)
    return {"by the time when they were taken": by_time, "as near-copies": near_copies}


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
