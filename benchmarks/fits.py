"""What the benchmarks of fits share: images of each class, a fit, promises and records."""

import io
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UsageError
from fit.candidates import CANDIDATES, SENTENCES, Candidate
from fit.decision import Decision, decide
from fit.heads import Heads
from fit.request import FitRequest
from fit.trials import Examples
from inference.calibration import Sample, Threshold

ERRORS = 5, 20, 50  # percent that are promised
HEADS = [one for one in CANDIDATES if one.method != SENTENCES]


def of_each_class(labels: NDArray[Any], number: int, rng: np.random.Generator) -> NDArray[Any]:
    """The places of so many images of each class, drawn at random."""
    classes = np.unique(labels)
    places = [rng.permutation(np.flatnonzero(labels == label))[:number] for label in classes]
    return np.concatenate(places)


def decided(
    heads: Heads,
    examples: Examples,
    request: FitRequest,
    candidates: Sequence[Candidate] = tuple(HEADS),
) -> tuple[Decision, float]:
    """The decision among heads, and the processor seconds that it took."""
    heads.seed = request.seed
    began = time.process_time()
    with redirect_stdout(io.StringIO()):
        decision = decide(heads, examples, candidates, request)
    return decision, time.process_time() - began


def promised(
    decision: Decision, logits: NDArray[Any], errors: Sequence[int], sample: Sample | None = None
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The errors in percent that can be promised, each with the images (images,) to answer."""
    assert decision.trials is not None
    labels = decision.trials.sample.labels
    for error in errors:
        try:
            threshold = Threshold.fit(decision.logits[0], labels, error / 100, sample=sample)
        except UsageError:
            continue
        yield error, threshold.apply(logits)


def kept_promises(
    decision: Decision, logits: NDArray[Any], labels: NDArray[Any]
) -> dict[int, list[float]]:
    """Of each of ERRORS that can be promised, in percent: the share of answered images, and of
    wrong answers.
    """
    wrong = logits.argmax(axis=1) != labels
    answered = promised(decision, logits, ERRORS)
    return {error: [percent(given), percent(wrong[given])] for error, given in answered}


def percent(flags: NDArray[np.bool_]) -> float:
    """The share of true ones; 0 for none."""
    return 100 * float(flags.mean()) if len(flags) else 0.0


def read_records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def add_record(file: Path, record: dict[str, Any]) -> None:
    with open(file, "a") as lines:
        lines.write(json.dumps(record) + "\n")
