"""Images without labels: their features, what a model says of them, and which are near-copies."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.errors import UsageError
from inference.classifier import PromptedClassifier
from inference.head_only import HeadOnly
from inference.predictions import Predictions
from inference.seen import SeenImages
from measures.labelling import choose_images
from trainers.base.prompted import normalize

from ..command import with_checksums
from ..features import EncodedImage, Features, features_of, read_features
from ..photos import NOT_KNOWN, find_groups, firsts, looks_known
from ..read_images import Photo, notes_of, unlabelled_in


class Asked(NamedTuple):
    """An image whose label is asked for."""

    path: str
    guess: str
    is_drawn: bool  # at random


@dataclass(frozen=True, eq=False)
class UnlabelledPool:
    """Images, each of which can be read, in the order of their pixels.

    Attributes:
        features: (images, joint), of unit length.
        groups: (images,): images of one group have one number.
        seen: (images,): whether the model has learned from an image.
    """

    photos: Sequence[Photo]
    features: NDArray[np.float32]
    groups: NDArray[np.int64]
    seen: NDArray[np.bool_]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(
        cls, place: Path, classifier: PromptedClassifier, model: Path | None
    ) -> "UnlabelledPool":
        """The images of a folder, a list or a bank. Those that cannot be read are in the notes.

        Args:
            model: the folder of the classifier, which says what it has learned from.

        Raises:
            UsageError: there are no images that can be read, or the model answers from views.
        """
        classifier.require_one_view("--model")
        behind = tower_of(classifier)
        photos, rows, notes = readable(place, behind)
        before = features_of(photos, rows)
        guessed = zip(photos, predicted(classifier, behind, photos, before).labels, strict=True)
        photos = [replace(photo, label=label) for photo, label in guessed]
        looks = looks_known(photos, rows)
        if not looks:
            notes.append(NOT_KNOWN)
        return cls(
            photos,
            normalize(behind.features(before)).numpy(),
            find_groups(photos, rows, looks).certain,
            seen_by(model, [rows[photo.path] for photo in photos]),
            notes,
        )

    def ask(
        self, labels: Mapping[str, str], budget: int, drawn: int, seed: int, method: str
    ) -> list[Asked]:
        """The images whose labels help most, and then some at random; one of each group.

        Args:
            labels: those so far, by absolute paths, in the order in which they were asked for.

        Raises:
            UsageError: the pool has fewer images without labels, or the model has learned from one
                of them.
        """
        labelled = self.places_of(labels)
        self.check_seen(labelled)
        places = self.one_of_each_group(labelled)
        free = len(places) - len(labelled)
        if budget > free:
            fault = f"--count is {budget:,}, and {free:,} groups of the pool have no label"
            raise UsageError(fault, "ask for fewer")
        features = self.features[places]
        known = list(range(len(labelled)))
        at_random = choose_images(features, known, drawn, seed, "random")
        # The chosen ones help most beside the random ones
        picks = choose_images(features, known + at_random, budget - drawn, seed, method)
        return [self.asked(places[pick], pick in at_random) for pick in picks + at_random]

    def left(self, labels: Iterable[str]) -> int:
        """The number of groups without a label."""
        labelled = self.places_of(labels)
        return len(self.one_of_each_group(labelled)) - len(labelled)

    def places_of(self, paths: Iterable[str]) -> list[int]:
        """The places of those images that are in the pool."""
        place_of = {absolute(photo): place for place, photo in enumerate(self.photos)}
        return [place_of[path] for path in paths if path in place_of]

    def asked(self, place: int, is_drawn: bool) -> Asked:
        photo = self.photos[place]
        return Asked(absolute(photo), photo.label, is_drawn)

    def check_seen(self, labelled: Sequence[int]) -> None:
        """Raise UsageError if the model has learned from an image that has no label here."""
        seen = self.seen.copy()
        seen[list(labelled)] = False
        if seen.any():
            example = self.photos[int(seen.argmax())].path
            fault = (
                f"the model has learned from {seen.sum():,} images of the pool, such as {example}"
            )
            raise UsageError(fault, "take them out, or give the CSV file with their labels as --to")

    def one_of_each_group(self, labelled: Sequence[int]) -> list[int]:
        """The places of the labelled images, in their order, and of the first image of each group
        without a label.
        """
        with_label = set(self.groups[list(labelled)].tolist())
        places = firsts(self.groups).tolist()
        others = [place for place in places if int(self.groups[place]) not in with_label]
        return [*labelled, *others]


def absolute(photo: Photo) -> str:
    """The path of an image, as the CSV file has it."""
    return os.path.abspath(photo.path)


def readable(
    place: Path, behind: HeadOnly
) -> tuple[list[Photo], dict[str, EncodedImage], list[str]]:
    """The images that can be read, in the order of their pixels; what is known of each by its path;
    and notes about others.

    Raises:
        UsageError: there are none.
    """
    found = with_checksums(unlabelled_in(place))
    encoder = Features(behind.classifier, behind.tower.model)
    rows, damaged = read_features(found, encoder)
    photos = [photo for photo in found if photo.path in rows]
    if not photos:
        fault = next(iter(damaged.values()), "it is empty")
        raise UsageError(f"{place} has no image that can be read ({fault})", "give another")
    photos.sort(key=lambda photo: (rows[photo.path].pixels_sha256, photo.path))
    return photos, rows, notes_of(damaged)


def tower_of(classifier: PromptedClassifier) -> HeadOnly:
    """The frozen tower of a classifier; of one with a tower of its own, that of zero-shot CLIP."""
    try:
        return HeadOnly(classifier)
    except UsageError:
        name = classifier.backbone
        clip = classifier.clip
        device = classifier.device.type
        names = classifier.class_names
        return HeadOnly(PromptedClassifier.zero_shot(name, names, device=device, clip=clip))


def predicted(
    classifier: PromptedClassifier, behind: HeadOnly, photos: Sequence[Photo], before: Tensor
) -> Predictions:
    """The answers of a classifier, which reads the images if it has a tower of its own."""
    if behind.classifier is classifier:
        return behind.predict(before)
    if any(photo.bank for photo in photos):
        HeadOnly(classifier)  # which says why it cannot read a bank
    return classifier.predict([photo.path for photo in photos])


def seen_by(model: Path | None, rows: Sequence[EncodedImage]) -> NDArray[np.bool_]:
    """(images,): whether a model says that it has learned from an image."""
    seen = SeenImages.read(model) if model and model.is_dir() else None
    if seen is None:
        return np.zeros(len(rows), dtype=bool)
    sha256 = [row.pixels_sha256 for row in rows]
    signatures = [row.signature for row in rows]
    images = SeenImages.of(sha256, signatures, [0] * len(rows), "learned")
    return seen.of_role("learned", "chosen").equal(images)
