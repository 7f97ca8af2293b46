"""A fit: its images, its decision, and its test; fit.json and the page show it."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip import is_known
from inference.calibrated import Calibration, sha256_of_images

from .candidates import GUESSING, TITLES
from .choose import Estimate, gain, interval
from .decision import Decision
from .options import PRIORS, FitRequest
from .photos import Photos

MORE = 50  # images, whose gain is forecast


@dataclass(frozen=True)
class Tested:
    """The accuracy on test images, in percent, without those of a group that was learned from.

    Attributes:
        images: the number of these images.
        accuracy: None if there are none.
        known: the number of images of groups that were learned from.
        accuracy_with_known: of all test images.
        example: the path of an image that is left out; empty if there is none.
    """

    images: int
    accuracy: float | None
    known: int
    accuracy_with_known: float
    example: str = ""

    @classmethod
    def of(cls, photos: Photos, correct: NDArray[np.bool_]) -> "Tested":
        """The test of (test images,)."""
        learned = {photo.group_number for photo in photos.training}
        learned.discard(None)
        known = np.array([photo.group_number in learned for photo in photos.tested])
        example = photos.tested[int(known.argmax())].path if known.any() else ""
        accuracy = None if known.all() else 100 * float(correct[~known].mean())
        with_known = 100 * float(correct.mean())
        return cls(int((~known).sum()), accuracy, int(known.sum()), with_known, example)

    @property
    def notes(self) -> list[str]:
        """The parts that are left out, for the user."""
        if self.accuracy is None:
            return ["All test images are near-copies of training images: they test nothing"]
        if not self.known:
            return []
        left_out = (
            f"Left out of the test: {self.known:,} near-copies of training images, "
            f"such as {self.example}"
        )
        with_known = f"{self.accuracy_with_known:.1f}% of the test images are right"
        return [f"{left_out}; with them, {with_known}"]

    def to_json(self) -> dict[str, Any]:
        content = {"images": self.images, "accuracy": self.accuracy, "known": self.known}
        if self.known and self.accuracy is not None:
            content["accuracy_with_known"] = self.accuracy_with_known
        return content


@dataclass(frozen=True)
class Fit:
    """The result of a fit."""

    request: FitRequest
    photos: Photos
    decision: Decision
    test: Tested | None = None

    @property
    def estimate(self) -> Estimate | None:
        """Of the accuracy on new images, if classes are as frequent as the user says."""
        return self.decision.estimates.get(self.request.prior)

    @property
    def other_estimate(self) -> Estimate | None:
        """The estimate for the other frequencies, if it differs by more than a point."""
        (other,) = set(PRIORS) - {self.request.prior}
        estimate = self.decision.estimates.get(other)
        if estimate is None or self.estimate is None:
            return None
        return estimate if abs(estimate.accuracy - self.estimate.accuracy) > 1 else None

    @property
    def gain_of_more(self) -> tuple[float, float] | None:
        """`expected` of MORE images; None without an estimate better than guessing."""
        at = self.estimate
        classes = len(self.photos.names)
        if at is None or at.accuracy <= 100 / classes:
            return None
        return expected(asdict(at), classes, self.decision.of_class, len(self.photos.training))

    @property
    def baseline(self) -> str:
        """What answers without learning, for people."""
        return "zero-shot CLIP" if self.decision.reads_names else GUESSING

    @property
    def notes(self) -> list[str]:
        """For the user."""
        of_test = self.test.notes if self.test else []
        return [*self.photos.notes, *self.decision.notes, *of_test]

    @property
    def doubt(self) -> str:
        """A sentence if images with too little structure may be near-copies, and the estimate
        depends on it: it is lower by more than half of its interval's half width; else empty.
        """
        apart = self.decision.apart
        estimate = self.estimate
        if not self.photos.doubt or estimate is None:
            return ""
        if apart is None:
            return f"{self.photos.doubt}."
        if abs(apart - estimate.accuracy) <= (estimate.high - estimate.low) / 4:
            return ""
        return f"{self.photos.doubt}. If they do not, the estimate is {apart:.0f}%."

    @property
    def surprise(self) -> str:
        """A sentence if the accuracy on the test images is outside the interval of the estimate;
        else empty.
        """
        if self.test is None or self.test.accuracy is None or self.estimate is None:
            return ""
        accuracy = self.test.accuracy
        low = self.estimate.low
        high = self.estimate.high
        if low <= accuracy <= high:
            return ""
        where = "below" if accuracy < low else "above"
        reasons = "near-copies, another mix of classes, or another kind of images"
        share = accuracy / 100
        error = 196 * (share * (1 - share) / self.test.images) ** 0.5
        if low - error <= accuracy <= high + error:
            reasons = f"chance (there are {self.test.images:,} test images), {reasons}"
        return (
            f"The test accuracy of {accuracy:.1f}% is {where} the interval of the estimate. "
            f"Likely reasons: {reasons}."
        )

    @cached_property
    def calibration(self) -> Calibration | None:
        """The promises of the model; None if no image could be held out."""
        trials = self.decision.trials
        certainty = self.decision.certainty
        if trials is None or certainty is None:
            return None
        held = [self.photos.images[place] for place in trials.held]
        sha256 = sha256_of_images((photo.sha256, photo.label) for photo in held)
        names = tuple(self.photos.names)
        return Calibration(names, len(held), sha256, "held-out training images", *certainty)

    def to_json(self) -> dict[str, Any]:
        """The content of fit.json, besides accuracies by class, confused pairs and suspects."""
        decision = self.decision
        chosen = [asdict(candidate) | {"weight": weight} for candidate, weight in decision.chosen]
        estimates = {prior: asdict(one) for prior, one in decision.estimates.items()}
        facts = {
            "images": [asdict(photo) for photo in self.photos.images],
            "names": self.photos.names,
            "backbones": decision.backbones,
            "damaged": dict(self.photos.damaged),
        }
        facts |= {
            "notes": self.notes,
            "candidates": [*decision.rows],
            "chosen": chosen,
            "grouped": self.photos.grouped,
            "estimate": estimates.get(self.request.prior),
            "estimates": estimates,
        }
        return facts | {
            "apart": decision.apart,
            "doubt": self.doubt,
            "of_class": decision.of_class,
            "zero_shot": decision.zero_shot,
            "without_nesting": decision.without_nesting,
            "test": self.test.to_json() if self.test else None,
            "curve": decision.curve,
        }

    def summary(self) -> list[str]:
        """The last lines on the terminal."""
        damaged = [f"Left out: {fault}" for fault in self.photos.damaged.values()]
        lines = [self.doubt] if self.doubt else []
        lines += damaged[:5]
        if len(damaged) > 5:
            lines.append("...")
        for row in self.decision.backbones:
            cost = f"{row['ms']:.1f} ms an image, {row['megabytes']:.0f} MB"
            lines.append(f"{row['backbone']}: {row['accuracy']:.1f}% on held-out images, {cost}")
        lines += [*self.notes, f"Chosen: {self.classifier} on {self.request.backbone}"]
        if self.photos.grouped:
            lines.append(self.photos.grouped)
        lines += self.estimate_lines()
        if self.test and self.test.accuracy is not None:
            accuracy = self.test.accuracy
            lines.append(f"Test images: {accuracy:.1f}% of {self.test.images:,} right")
        if self.surprise:
            lines.append(self.surprise)
        lines += [self.promise] if self.promise else []
        lines.append(f"Written: {self.request.to}, with report.html")
        return [*lines, f"Next: python tools/predict.py {self.words_of_predict('photo.jpg')}"]

    @property
    def promise(self) -> str:
        """What `unknown` promises; empty if it promises nothing."""
        certainty = self.decision.certainty
        if certainty is None or certainty.threshold is None:
            return ""
        promised = certainty.threshold
        return (
            f"With --unknown, at most {100 * promised.error:g}% of the answers are wrong, with a "
            f"confidence of {100 * promised.confidence:g}%. {promised.answered:,} of "
            f"{len(self.decision.logits[0]):,} held-out images get an answer, {promised.wrong:,} "
            "of them a wrong one."
        )

    def words_of_predict(self, images: str) -> str:
        """The arguments of tools/predict.py for this model."""
        unknown = " --unknown" if self.promise else ""
        return f"{shlex.quote(str(self.request.to))} {images}{self.backbone_option}{unknown}"

    @property
    def classifier(self) -> str:
        """The choice, for people; fit.json has the settings."""
        methods = [candidate.method for candidate, _ in self.decision.chosen]
        if len(methods) == 1:
            return self.decision.name
        titles = " + ".join(TITLES.get(method, method) for method in methods)
        return f"a vote of {len(methods)} heads ({titles})"

    @property
    def backbone_option(self) -> str:
        """The option by which other commands find the backbone; empty if its name says that."""
        name = self.request.backbone
        return "" if is_known(name) else f" --backbone {shlex.quote(name)}"

    def estimate_lines(self) -> Sequence[str]:
        at = self.estimate
        if at is None:
            return []
        interval = f"(95%: {at.low:.1f} to {at.high:.1f})"
        before = f"{self.baseline} {self.decision.zero_shot:.1f}%"
        lines = [f"Estimate: {at.accuracy:.1f}% of new images right {interval}; {before}"]
        other = self.other_estimate
        if other:
            mix = "equally frequent" if self.request.prior == PRIORS[0] else "as frequent as here"
            interval = f"(95%: {other.low:.1f} to {other.high:.1f})"
            lines.append(f"Estimate if classes are {mix}: {other.accuracy:.1f}% {interval}")
        return lines


def expected(
    estimate: Mapping[str, float], classes: int, of_class: float, labels: int
) -> tuple[float, float]:
    """The points that MORE labels should add, if the error falls further as it did since guessing;
    and the width of the interval then.

    With zero-shot CLIP as the start, the forecast was too low where zero-shot CLIP is good: heads
    are better only after some labels.

    Args:
        classes: their number.
        of_class: the mean number of groups of a class.
        labels: so many were learned from.
    """
    accuracy = estimate["accuracy"]
    times = (labels + MORE) / labels
    added = gain(accuracy, 100 / classes, of_class, math.log2(times))
    low, high = interval(accuracy + added, estimate["groups"] * times)
    return added, high - low
