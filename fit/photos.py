"""The images that a fit uses: each once, without damaged ones, and in groups of near-copies, which
folds keep together and an estimate counts once.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import UsageError
from datasets import copies
from datasets.base import same_names
from inference.seen import SeenImages

from .features import EncodedImage
from .read_images import ASKED, Photo, learned_classes

MOST_NAMED = 3  # classes in a sentence


@dataclass(frozen=True)
class Photos:
    """Images with their classes and groups.

    Attributes:
        images: each image that can be used, once; those for training first.
        names: of the classes, sorted.
        damaged: the faults of images that are left out, by path.
        notes: for the user.
        grouped: how many training images are near-copies, for people; empty if there are none.
        certain: (training images,), the numbers of their groups if images with too little
            structure to decide are apart; None if there is no such doubt.
        doubt: which classes have these images, for people; empty if there are none.
        looks: whether it is known of each image how it looks.
    """

    images: list[Photo]
    names: list[str]
    damaged: Mapping[str, str]
    notes: list[str]
    grouped: str = ""
    certain: NDArray[np.int64] | None = None
    doubt: str = ""
    looks: bool = True

    @classmethod
    def usable(
        cls,
        photos: Sequence[Photo],
        rows: Mapping[str, EncodedImage],
        damaged: Mapping[str, str],
    ) -> "Photos":
        """The images without damaged ones and copies. Of copies the first is kept: one for training
        before one for a test. An image that has two labels is left out, as one of them must be
        wrong.

        Args:
            rows: what is known of an image, by path; of damaged images there is none.

        Raises:
            UsageError: fewer than two classes are left.
        """
        kept, notes = without_copies(photos, rows)
        names = sorted(learned_classes(kept))
        if len(names) < 2:
            remedies = ["give images of two classes or more"]
            if damaged:
                remedies.append(f"replace damaged images, such as: {[*damaged.values()][0]}")
            fault = "fewer than two classes have an image that can be used"
            raise UsageError(fault, "; ".join([*remedies, *notes]))
        lost = sorted({photo.label for photo in photos}.difference(names))
        if lost:
            notes.append(f"Left out as no training image can be used: {', '.join(lost)}")
        if similar := same_names(names):
            notes.append(similar)
        known = [photo for photo in kept if photo.label not in lost]
        return cls(known, names, damaged, notes)

    def in_groups(self, groups: "Groups") -> "Photos":
        """The same images with the numbers of their groups."""
        images = [
            replace(photo, group_number=number)
            for photo, number in zip(self.images, groups.numbers.tolist(), strict=True)
        ]
        inside = np.array([photo.part != "test" for photo in images])
        found = replace(self, images=images).with_doubt(groups.certain[inside])
        sizes = np.bincount(found.groups)
        several = sizes > 1
        if not several.any():
            return found
        images_of_several = f"{sizes[several].sum():,} images ({groups.reasons})"
        grouped = f"One group has {images_of_several}, and counts once."
        if several.sum() > 1:
            grouped = f"{several.sum():,} groups hold {images_of_several}; each group counts once."
        return replace(found, grouped=grouped)

    def with_doubt(self, certain: NDArray[np.int64]) -> "Photos":
        """The same with what is certain of the groups (training images,)."""
        before = groups_by_class(self.training, certain)
        after = groups_by_class(self.training, self.groups)
        names = [name for name in before if after[name] < before[name]]
        if not names:
            return self
        few, many = (sum(counts[name] for name in names) for counts in (after, before))
        listed = names[0] + " has" if len(names) == 1 else " and ".join(names) + " have"
        if len(names) > MOST_NAMED:
            listed = f"{len(names)} classes, such as {names[0]}, have"
        doubt = f"{listed} images that may be near-copies: {few:,} groups instead of {many:,}"
        return replace(self, certain=certain, doubt=doubt)

    @cached_property
    def training(self) -> list[Photo]:
        return [photo for photo in self.images if photo.part != "test"]

    @property
    def drawn(self) -> NDArray[np.bool_] | None:
        """(training images,): whether an image is like new ones, and was not chosen to be labelled;
        None if none was.
        """
        drawn = np.array([photo.asked != ASKED[0] for photo in self.training])
        return None if drawn.all() else drawn

    @property
    def from_bank(self) -> bool:
        """Whether there is a bank, so that no image is read."""
        return any(photo.bank for photo in self.images)

    @cached_property
    def tested(self) -> list[Photo]:
        return [photo for photo in self.images if photo.part == "test"]

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """(training images,): the number of each one's group."""
        return numbers(self.training)

    def label_numbers(self, photos: Sequence[Photo]) -> list[int]:
        """The places of the photos' classes in `names`."""
        places = {name: place for place, name in enumerate(self.names)}
        return [places[photo.label] for photo in photos]

    def seen(
        self, part: Sequence[Photo], rows: Mapping[str, EncodedImage], role: str
    ) -> SeenImages:
        """The ledger of these photos, in this role."""
        sha256 = [photo.pixels_sha256 for photo in part]
        signatures = [rows[photo.path].signature for photo in part]
        groups = numbers(part).tolist()
        return SeenImages.of(sha256, signatures, self.label_numbers(part), role, groups)


def groups_by_class(photos: Sequence[Photo], groups: NDArray[np.int64]) -> dict[str, int]:
    """The number of groups that each class has images of."""
    found = defaultdict[str, set[int]](set)
    for photo, group in zip(photos, groups.tolist(), strict=True):
        found[photo.label].add(group)
    return {label: len(found[label]) for label in sorted(found)}


def without_copies(
    found: Sequence[Photo], rows: Mapping[str, EncodedImage]
) -> tuple[list[Photo], list[str]]:
    """The first of each image with the same pixels, without those that cannot be read and those of
    two classes; and notes about the latter.
    """
    photos = [
        replace(photo, pixels_sha256=rows[photo.path].pixels_sha256)
        for photo in found
        if photo.path in rows
    ]
    labels = defaultdict[str, set[str]](set)
    for photo in photos:
        labels[photo.pixels_sha256].add(photo.label)
    kept: dict[str, Photo] = {}
    left_out = defaultdict[str, list[str]](list)
    for photo in photos:
        both = labels[photo.pixels_sha256]
        if len(both) > 1:
            classes = " and ".join(sorted(both))
            left_out["they are in two classes"].append(f"{photo.path} ({classes})")
        elif photo.pixels_sha256 in kept:
            left_out["they are copies of other images"].append(photo.path)
        else:
            kept[photo.pixels_sha256] = photo
    notes = [
        f"Left out as {why}: {len(paths)} images, such as {paths[0]}"
        for why, paths in left_out.items()
    ]
    return list(kept.values()), notes


NOT_KNOWN = "Near-copies are not known: the bank was written without --near-copies"


class Groups(NamedTuple):
    """Which photos are near-copies.

    Attributes:
        numbers: (photos,), the number of each one's group, from 0.
        certain: (photos,), the same if images with too little structure to decide are apart.
        reasons: how many training images were joined for which reason, for people.
    """

    numbers: NDArray[np.int64]
    certain: NDArray[np.int64]
    reasons: str


def find_groups(
    photos: Sequence[Photo], rows: Mapping[str, EncodedImage], looks: bool = True
) -> Groups:
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
        groups = copies.components(len(photos), [*links.values()])
        return Groups(groups, groups, reasons_of(links, inside))
    labels = np.unique([photo.label for photo in photos], return_inverse=True)[1]
    of_photos = [rows[photo.path] for photo in photos]
    by_time = copies.bursts([row.taken for row in of_photos], labels.tolist())
    signatures = np.stack([row.signature for row in of_photos])
    features = np.stack([row.feature.numpy() for row in of_photos])
    near = copies.NearCopies.of(signatures, features, labels)
    links |= {"by the time when they were taken": by_time, "as near-copies": near.pairs}
    certain = copies.components(len(photos), [*links.values()])
    links["by a guess"] = near.guessed(certain, labels, inside)
    groups = copies.components(len(photos), [*links.values()])
    return Groups(groups, certain, reasons_of(links, inside))


def reasons_of(links: Mapping[str, copies.Pairs], inside: NDArray[np.bool_]) -> str:
    """How many of the photos `inside` (photos,) were joined for which reason, for people."""
    reasons = []
    for reason, pairs in links.items():
        if count := len(np.unique(pairs[inside[pairs].all(axis=1)])):
            reasons.append(f"{count:,} {reason}")
    return ", ".join(reasons)


def looks_known(photos: Sequence[Photo], rows: Mapping[str, EncodedImage]) -> bool:
    """Whether it is known how the photos that have a row look, and when they were taken: some banks
    do not say it.
    """
    return all(photo.pixels_sha256 for photo in photos if photo.bank and photo.path in rows)


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
    """The places of the first image of each group, by the numbers of groups (images,)."""
    return np.sort(np.unique(numbers, return_index=True)[1])


def numbers(photos: Sequence[Photo]) -> NDArray[np.int64]:
    """(photos,): the number of each photo's group; one that has none is a group of its own."""
    groups = [photo.path if photo.group_number is None else photo.group_number for photo in photos]
    return copies.numbered(np.array(list(map(str, groups))))
