"""Calibrations fitted on held-out images, and what they change on the images of a test."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UsageError
from common.files import checksum
from measures.metrics import ece
from trainers.base.data_use import count_common, count_copies

from .calibrated import Calibration, sha256_of_images
from .calibration import Temperature, Threshold, checked, log_softmax
from .sample import Floats
from .sets import KINDS, Sets

COVERAGE = 0.9  # of the sets in a report
# Of a threshold, by default
ERROR = 0.05
CONFIDENCE = 0.95
ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2)  # whose thresholds a report has


class Outputs(NamedTuple):
    """Logits (images, classes) and labels (images,)."""

    logits: Floats
    labels: np.ndarray


def fit(
    held: Outputs,
    names: Sequence[str],
    items: Sequence[Any],
    source: str,
    error: float | None = None,
    **facts,
):
    """The calibration on held-out images, with a line if these promise no error.

    Args:
        names: of the classes, in the order of the logits.
        items: the images, with `impath` and `classname`.
        error: to promise; ERROR if it is None, or no promise where the images are too few.
        facts: `kind` of the sets, and `test_images`.

    Raises UsageError if a logit is not finite, or the images cannot promise the given error.
    """
    threshold = None
    try:
        threshold = Threshold.fit(*held, error or ERROR, CONFIDENCE)
    except UsageError as problem:
        checked(*held)
        if error is not None:
            raise
        print(f"No threshold for unknown images: {problem}")
    sets = Sets.fit(*held, facts.pop("kind", KINDS[0]))
    temperature = Temperature.fit(*held)
    sha256 = sha256_of_images((sha256_of(item), item.classname) for item in items)
    return Calibration(
        tuple(names), len(items), sha256, source, temperature, sets, threshold, **facts
    )


def sha256_of(item: Any) -> str:
    """The SHA-256 of the file of an image, which a bank knows."""
    if hasattr(item, "sha256"):
        return item.sha256
    return checksum(Path(item.impath)) if item.impath else ""


def count_shared(items: Sequence[Any], others: Sequence[Any]) -> int:
    """How many of the images are also among the others, by their path, or by their content if not
    all are.
    """
    common = count_common(items, others)
    return common if common == len(items) else max(common, count_copies(items, others))


def check_test_images(count: int, images: int, where: str, accepted: bool, remedy: str) -> None:
    """Raise UsageError if test images take part in a calibration, and that is not accepted."""
    if count and not accepted:
        fault = f"{count:,} of {images:,} images for the calibration are test images of {where}"
        accepting = f"accept it by {remedy}, which marks the calibration"
        raise UsageError(fault, f"give others, or {accepting}")


def quality(logits: Floats, labels: np.ndarray) -> dict[str, float]:
    """`ece` in percent, and `nll`."""
    log_p = log_softmax(logits)
    return {
        "ece": 100 * ece(np.exp(log_p.max(axis=1)), log_p.argmax(axis=1) == labels),
        "nll": float(-log_p[np.arange(len(log_p)), labels].mean()),
    }


def report(
    calibration: Calibration,
    test: Outputs,
    held: Outputs | None = None,
):
    """The changes by a calibration on the images of a test.

    Args:
        held: the images of the calibration, for sets of each kind and for thresholds of several
            errors.

    Returns:
        a dict for results.json: the facts of the calibration; ECE and NLL `before` and `after` the
        temperature; `sets` by kind: coverage in percent, mean size, number of
        empty sets; `unknown`: for each asked error the share of the answered images and of the
        wrong ones among these, in percent.
    """
    z, labels = test
    facts: dict[str, Any] = {
        "images": calibration.images,
        "sha256": calibration.sha256,
        "source": calibration.source,
        "test_images": calibration.test_images,
        "temperature": calibration.temperature.temperature,
        "before": quality(z, labels),
    }
    facts["after"] = quality(calibration.temperature.apply(z), labels)
    all_sets = [calibration.sets] if held is None else [Sets.fit(*held, kind) for kind in KINDS]
    facts["sets"] = {sets.kind: of_sets(sets.apply(z, COVERAGE), labels) for sets in all_sets}
    facts["unknown"] = [of_threshold(each, test) for each in thresholds_of(calibration, held)]
    return facts


def thresholds_of(calibration: Calibration, held: Outputs | None) -> list[Threshold]:
    """That of a calibration and, of its images, those of ERRORS that these can promise."""
    thresholds = {}
    if calibration.threshold:
        thresholds[calibration.threshold.error] = calibration.threshold
    if held is not None:
        for error in ERRORS:
            with suppress(UsageError):  # the images cannot promise it
                threshold = Threshold.fit(held.logits, held.labels, error, CONFIDENCE)
                thresholds.setdefault(error, threshold)
    return [threshold for _, threshold in sorted(thresholds.items())]


def of_sets(sets: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    sizes = sets.sum(axis=1)
    covered = sets[np.arange(len(labels)), labels]
    return {
        "coverage": 100 * float(covered.mean()),
        "size": float(sizes.mean()),
        "empty": int((sizes == 0).sum()),
    }


def of_threshold(threshold: Threshold, test: Outputs) -> dict[str, float]:
    answered = threshold.apply(test.logits)
    wrong = test.logits.argmax(axis=1) != test.labels
    error = 100 * float(wrong[answered].mean()) if answered.any() else 0.0
    return {
        "asked": 100 * threshold.error,
        "answered": 100 * float(answered.mean()),
        "wrong": error,
    }
