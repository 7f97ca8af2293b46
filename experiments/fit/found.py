"""What a fit has found: the content of fit.json and of the page."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.calibrated import Calibration

from .choice import Estimate
from .heads import Candidate
from .images import Images


def nothing(*shape: int) -> Any:
    return field(default_factory=lambda: np.empty(shape, dtype=np.int64 if len(shape) == 1 else np.float64))


@dataclass
class Found:
    """What a fit has found. Accuracies are in percent.

    Attributes:
        rows: each candidate: name, and accuracy on images that it has not learned from and seconds, or its fault.
        chosen: candidates and their weights.
        estimate: of the chosen classifier's accuracy on new images; None if nothing could be held out.
        zero_shot: the accuracy of zero-shot CLIP on the same images.
        flattered: what the estimate would be if the choice were not made inside of the folds.
        test: of test images: their number and the accuracy.
        curve: images of each class, and the accuracy of the chosen heads after learning from so many.
        held: (images,), the places among the training images of those that were held out.
        labels: (images,), theirs.
        logits: (repeats, images, classes), theirs, by the chosen classifier.
        notes: lines for the user.
    """

    images: Images
    rows: list[dict[str, Any]] = field(default_factory=list)
    chosen: Sequence[tuple[Candidate, float]] = ()
    estimate: Estimate | None = None
    zero_shot: float | None = None
    flattered: float | None = None
    test: dict[str, Any] | None = None
    curve: list[tuple[float, float]] = field(default_factory=list)
    held: NDArray[np.int64] = nothing(0)
    labels: NDArray[np.int64] = nothing(0)
    logits: NDArray[np.float64] = nothing(0, 0, 0)
    calibration: Calibration | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " + ".join(candidate.name for candidate, _ in self.chosen)

    def to_json(self) -> dict[str, Any]:
        images = zip(self.images.photos, self.images.pixels, strict=True)
        return {
            "chosen": [asdict(candidate) | {"weight": weight} for candidate, weight in self.chosen],
            "estimate": asdict(self.estimate) if self.estimate else None,
            "zero_shot": self.zero_shot,
            "without_nesting": self.flattered,
            "test": self.test,
            "curve": self.curve,
            "candidates": self.rows,
            "notes": [*self.images.warnings, *self.notes],
            "damaged": self.images.damaged,
            "images": [photo._asdict() | {"pixels_sha256": sha256} for photo, sha256 in images],
        }
