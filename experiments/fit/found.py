"""The results of a fit: the images that it uses, and the content of fit.json and of the page."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from common.errors import UsageError
from datasets.base import same_names
from inference.calibrated import Calibration

from .choice import Estimate
from .heads import Candidate
from .images import Photo

NOT_WRITTEN = {"held", "labels", "logits", "calibration"}  # to fit.json


@dataclass
class Found:
    """The results of a fit. Accuracies are in percent. If no image could be held out, most of it stays empty."""

    images: list[Photo]  # each image that can be used, once; those for training first
    names: list[str]  # of the classes, sorted
    damaged: Mapping[str, str] = field(default_factory=dict)  # what is wrong with images that are left out, by path
    notes: list[str] = field(default_factory=list)  # for the user
    candidates: list[dict[str, Any]] = field(default_factory=list)  # of each: name, accuracy and seconds, or its fault
    chosen: Sequence[tuple[Candidate, float]] = ()  # candidates and their weights
    estimate: Estimate | None = None  # of the accuracy on new images
    zero_shot: float | None = None  # the accuracy of zero-shot CLIP on the held-out images
    cross_validated: float | None = None  # the accuracy on images held out, before what all images add to it
    without_nesting: float | None = None  # what the estimate would be if the choice were not made inside of the folds
    test: dict[str, Any] | None = None  # of test images: their number and the accuracy
    curve: list[tuple[float, float]] = field(default_factory=list)  # images of a class, accuracy of the chosen heads
    held: Any = None  # (held,), the places in `images` of those that were held out
    labels: Any = None  # (held,), their labels
    logits: Any = None  # (repeats, held, classes), by the chosen classifier
    calibration: Calibration | None = None

    @classmethod
    def of(cls, photos: Sequence[Photo], pixels: Mapping[str, str], damaged: Mapping[str, str]) -> "Found":
        """The images without damaged ones and copies. Of copies the first is kept: one for training before one for a
        test. An image that has two labels is left out, as one of them must be wrong.

        Args:
            pixels: the SHA-256 of the decoded pixels, by path; of damaged images there is none.

        Raises:
            UsageError: fewer than two classes are left.
        """
        kept: dict[str, Photo] = {}
        labels, left_out = defaultdict[str, set[str]](set), defaultdict[str, list[str]](list)
        readable = [replace(photo, pixels_sha256=pixels[photo.path]) for photo in photos if photo.path in pixels]
        for photo in readable:
            labels[photo.pixels_sha256].add(photo.label)
        for photo in readable:
            if len(both := labels[photo.pixels_sha256]) > 1:
                left_out["they are in two classes"].append(f"{photo.path} ({' and '.join(sorted(both))})")
            elif photo.pixels_sha256 in kept:
                left_out["they are copies of other images"].append(photo.path)
            else:
                kept[photo.pixels_sha256] = photo
        names = sorted({photo.label for photo in kept.values() if photo.part != "test"})
        if len(names) < 2:
            example = f", such as: {next(iter(damaged.values()))}" if damaged else ""
            remedy = f"replace damaged images{example}; and images that are in two classes"
            raise UsageError("fewer than two classes have an image that can be used", remedy)
        notes = [f"Left out as {why}: {len(paths)} images, such as {paths[0]}" for why, paths in left_out.items()]
        if lost := sorted({photo.label for photo in photos}.difference(names)):
            notes.append(f"Left out as no training image can be used: {', '.join(lost)}")
        notes += filter(None, [same_names(names)])
        return cls([photo for photo in kept.values() if photo.label in names], names, damaged, notes)

    @property
    def training(self) -> list[Photo]:
        return [photo for photo in self.images if photo.part != "test"]

    @property
    def name(self) -> str:
        return " + ".join(candidate.name for candidate, _ in self.chosen)

    def to_json(self) -> dict[str, Any]:
        content = {key: value for key, value in asdict(self).items() if key not in NOT_WRITTEN}
        return content | {"chosen": [candidate | {"weight": weight} for candidate, weight in content["chosen"]]}
