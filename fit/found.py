"""The results of a fit: the images that it uses, and the content of fit.json and of the page."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UsageError
from datasets.base import same_names
from inference.calibrated import Calibration

from .choice import Estimate
from .groups import numbers
from .heads import Candidate
from .images import Photo

NOT_WRITTEN = {"held", "sample", "logits", "calibration"}  # to fit.json


@dataclass
class Found:
    """The results of a fit. Accuracies are in percent. If no image could be held out, most of it
    stays empty.
    """

    images: list[Photo]  # each image that can be used, once; those for training first
    names: list[str]  # of the classes, sorted
    # What is wrong with images that are left out, by path
    damaged: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # for the user
    # Of each: name, accuracy and seconds, or its fault
    candidates: list[dict[str, Any]] = field(default_factory=list)
    chosen: Sequence[tuple[Candidate, float]] = ()  # candidates and their weights
    # How many images are of one scene, for people; empty if each image is a scene of its own
    grouped: str = ""
    estimate: Estimate | None = None  # of the accuracy on new images
    # By how frequent the classes are: `command.PRIORS`
    estimates: dict[str, Estimate] = field(default_factory=dict)
    ungrouped: float | None = (
        None  # what the estimate would be if images of one scene were in several folds
    )
    of_class: float = 0.0  # the mean number of scenes of a class
    zero_shot: float | None = None  # the accuracy of zero-shot CLIP on the held-out images
    without_nesting: float | None = (
        None  # what the estimate would be if the choice were not made inside of the folds
    )
    test: dict[str, Any] | None = None  # of test images: their number and the accuracy
    # Images of a class, accuracy of the chosen heads
    curve: list[tuple[float, float]] = field(default_factory=list)
    held: Any = None  # (held,), the places in `images` of those that were held out
    sample: Any = None  # their labels, their groups, and how much each counts
    logits: Any = None  # (repeats, held, classes), by the chosen classifier
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls, photos: Sequence[Photo], pixels: Mapping[str, str], damaged: Mapping[str, str]
    ) -> "Found":
        """The images without damaged ones and copies. Of copies the first is kept: one for training
        before one for a test. An image that has two labels is left out, as one of them must be
        wrong.

        Args:
            pixels: the SHA-256 of the decoded pixels, by path; of damaged images there is none.

        Raises:
            UsageError: fewer than two classes are left.
        """
        kept: dict[str, Photo] = {}
        labels = defaultdict[str, set[str]](set)
        left_out = defaultdict[str, list[str]](list)
        readable = [
            replace(photo, pixels_sha256=pixels[photo.path])
            for photo in photos
            if photo.path in pixels
        ]
        for photo in readable:
            labels[photo.pixels_sha256].add(photo.label)
        for photo in readable:
            if len(both := labels[photo.pixels_sha256]) > 1:
                left_out["they are in two classes"].append(
                    f"{photo.path} ({' and '.join(sorted(both))})"
                )
            elif photo.pixels_sha256 in kept:
                left_out["they are copies of other images"].append(photo.path)
            else:
                kept[photo.pixels_sha256] = photo
        names = sorted({photo.label for photo in kept.values() if photo.part != "test"})
        if len(names) < 2:
            example = f", such as: {next(iter(damaged.values()))}" if damaged else ""
            remedy = f"replace damaged images{example}; and images that are in two classes"
            raise UsageError("fewer than two classes have an image that can be used", remedy)
        notes = [
            f"Left out as {why}: {len(paths)} images, such as {paths[0]}"
            for why, paths in left_out.items()
        ]
        if lost := sorted({photo.label for photo in photos}.difference(names)):
            notes.append(f"Left out as no training image can be used: {', '.join(lost)}")
        notes += filter(None, [same_names(names)])
        known = set(names)
        return cls(
            [photo for photo in kept.values() if photo.label in known], names, damaged, notes
        )

    def label_numbers(self, photos: Sequence[Photo]) -> list[int]:
        """The places of the photos' classes in `names`."""
        places = {name: place for place, name in enumerate(self.names)}
        return [places[photo.label] for photo in photos]

    def set_groups(self, groups: NDArray[np.int64], reasons: str) -> None:
        """Number the scenes of the images, (images,). `reasons` says how they were found."""
        scenes = groups.tolist()
        self.images = [
            replace(photo, scene=scene) for photo, scene in zip(self.images, scenes, strict=True)
        ]
        sizes = np.bincount(numbers(self.training))
        several = sizes > 1
        if several.any():
            self.grouped = (
                f"{several.sum():,} groups of images of one scene hold "
                f"{sizes[several].sum():,} images"
            )
            self.grouped += f" ({reasons}); each group counts once."

    def note_groups(self) -> None:
        """Say what the groups change, once the estimate is known."""
        if self.grouped and self.estimate and self.ungrouped is not None:
            at = self.estimate.accuracy
            without = self.ungrouped
            self.grouped += (
                f" So the estimate is {at:.0f}%. Without that it would be {without:.0f}%."
            )

    def largest_groups(self, most: int) -> list[list[str]]:
        """The paths of the training images of the largest groups, of two images or more."""
        by_scene = defaultdict[int, list[str]](list)
        for photo, scene in zip(self.training, numbers(self.training).tolist(), strict=True):
            by_scene[scene].append(photo.path)
        several = [paths for paths in by_scene.values() if len(paths) > 1]
        return sorted(several, key=len, reverse=True)[:most]

    def set_test(self, correct: NDArray[np.bool_]) -> None:
        """The accuracy on the test images, (images,), without those of a scene that was learned
        from.
        """
        learned = {photo.scene for photo in self.training}
        tested = self.images[len(self.training) :]
        known = np.array([photo.scene is not None and photo.scene in learned for photo in tested])
        self.test = {"images": int((~known).sum()), "accuracy": None, "known": int(known.sum())}
        if known.all():
            self.notes.append("All test images show scenes of training images: they test nothing")
            return
        self.test["accuracy"] = 100 * float(correct[~known].mean())
        if known.any():
            with_them = 100 * float(correct.mean())
            self.test["accuracy_with_known"] = with_them
            example = next(
                photo.path for photo, is_known in zip(tested, known, strict=True) if is_known
            )
            what = (
                f"Left out of the test: {known.sum():,} images that show scenes of training "
                f"images, such as {example}"
            )
            self.notes.append(f"{what}; with them, {with_them:.1f}% of the test images are right")

    def other_estimate(self, prior: str) -> Estimate | None:
        """The estimate for the other frequencies of classes, if it differs by more than a point."""
        for other, estimate in self.estimates.items():
            if other != prior and abs(estimate.accuracy - self.estimates[prior].accuracy) > 1:
                return estimate
        return None

    @property
    def surprise(self) -> str:
        """A sentence if the accuracy on the test images is outside the interval of the estimate;
        else empty.
        """
        if not self.test or self.test["accuracy"] is None or not self.estimate:
            return ""
        accuracy = self.test["accuracy"]
        at = self.estimate
        if at.low <= accuracy <= at.high:
            return ""
        where = "below" if accuracy < at.low else "above"
        reasons = "several images of one scene, another mix of classes, or another kind of images"
        error = 196 * (accuracy / 100 * (1 - accuracy / 100) / self.test["images"]) ** 0.5
        if at.low - error <= accuracy <= at.high + error:
            reasons = f"chance (there are {self.test['images']:,} test images), {reasons}"
        return (
            f"The test accuracy of {accuracy:.1f}% is {where} the interval of the estimate. "
            f"Likely reasons: {reasons}."
        )

    @property
    def labels(self) -> Any:
        """(held,): the labels of the images that were held out."""
        return self.sample.labels

    @property
    def training(self) -> list[Photo]:
        return [photo for photo in self.images if photo.part != "test"]

    @property
    def name(self) -> str:
        return " + ".join(candidate.name for candidate, _ in self.chosen)

    def to_json(self) -> dict[str, Any]:
        content = {key: value for key, value in asdict(self).items() if key not in NOT_WRITTEN}
        return content | {
            "chosen": [candidate | {"weight": weight} for candidate, weight in content["chosen"]]
        }
