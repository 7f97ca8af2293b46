"""Shared by the benchmarks of fits: data, images of each class, fits, promises and records."""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from dassl.config import get_cfg_default
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import datasets
from common.errors import UsageError
from common.names import plain
from fit.candidates import CANDIDATES, SENTENCES, Candidate
from fit.decision import Decision, decide_among
from fit.heads import Heads
from fit.plan import Plan
from fit.request import FitRequest
from fit.trials import Backbone, Examples
from inference.calibration import Sample, Threshold
from inference.classifier import PromptedClassifier

ERRORS = 5, 20, 50  # percent that are promised
HEADS = [one for one in CANDIDATES if one.method != SENTENCES]
Record = dict[str, Any]


class Images(NamedTuple):
    """Features from before the projection (images, width), and labels (images,)."""

    x: Tensor
    labels: NDArray[np.int64]

    def examples(self, names: Sequence[str]) -> Examples:
        """The same to learn from, each image a scene of its own."""
        y = torch.from_numpy(self.labels)
        return Examples(self.x, y, np.arange(len(y)), names)

    def part(self, places: ArrayLike) -> "Images":
        places = np.asarray(places, dtype=np.int64)
        return Images(self.x[places], self.labels[places])


class Data(NamedTuple):
    """The images that training images are drawn from, and those of the test."""

    heads: Heads
    train: Images
    test: Images

    def draw(self, shots: int, seed: int, swapped: float) -> tuple[Images, set[int]]:
        """So many training images of each class, and the places of those percent of the labels that
        are wrong.
        """
        rng = np.random.default_rng([seed, shots])
        drawn = self.train.part(of_each_class(self.train.labels, shots, rng))
        return drawn, swap(drawn.labels, swapped, len(self.heads.names), rng)


def dataset(kind: Any, root: Path) -> Any:
    """A dataset of Dassl's form, of this class, in the folder of the datasets."""
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.DATASET.ROOT = str(root)
    return kind(cfg)


def small_heads(names: Iterable[str]) -> Heads:
    """Heads on the small CLIP."""
    return Heads(PromptedClassifier.zero_shot("small", list(map(plain, names))))


def of_each_class(labels: NDArray[Any], number: int, rng: np.random.Generator) -> NDArray[Any]:
    """The places of so many images of each class, drawn at random."""
    classes = np.unique(labels)
    places = [rng.permutation(np.flatnonzero(labels == label))[:number] for label in classes]
    return np.concatenate(places)


def swap(
    labels: NDArray[np.int64], percent: float, classes: int, rng: np.random.Generator
) -> set[int]:
    """The places of so many percent of the labels, which are replaced by wrong ones."""
    places = rng.permutation(len(labels))[: round(percent / 100 * len(labels))].tolist()
    for place in places:
        labels[place] = (labels[place] + rng.integers(1, classes)) % classes
    return set(places)


def request_of(seed: int, methods: Sequence[str] = ()) -> FitRequest:
    return FitRequest(Path("images"), Path("model"), methods=tuple(methods), seed=seed)


def decided(
    heads: Heads,
    examples: Examples,
    seed: int,
    candidates: Sequence[Candidate] = tuple(HEADS),
    end: float = np.inf,
) -> tuple[Decision, float]:
    """The decision among heads, and the processor seconds that it took.

    Args:
        end: `Plan.end`; 0 for no learning curve.
    """
    heads.seed = seed
    backbone = Backbone("", heads, examples, candidates)
    began = time.process_time()
    with redirect_stdout(io.StringIO()):
        _, decision = decide_among([backbone], request_of(seed), Plan(end=end))
    return decision, time.process_time() - began


def logits_of(heads: Heads, decision: Decision, examples: Examples, x: Tensor) -> NDArray[Any]:
    """(images, classes): the answers of the chosen heads for features (images, width)."""
    weighted = [
        weight * heads.answers(one, examples.seen, x).numpy() for one, weight in decision.chosen
    ]
    return np.sum(weighted, axis=0)


def tested(decision: Decision, examples: Examples, data: Data) -> NDArray[np.bool_]:
    """(test images,): whether the chosen heads are right."""
    answers = logits_of(data.heads, decision, examples, data.test.x).argmax(axis=1)
    return answers == data.test.labels


def estimate_of(decision: Decision) -> dict[str, float]:
    """The estimate with its interval; empty if there is none."""
    found = decision.estimates.get("folder")
    return {"estimate": found.accuracy, "low": found.low, "high": found.high} if found else {}


def contained(records: Iterable[Record], key: str) -> list[bool]:
    """Whether the interval contains this accuracy, of each record with an estimate."""
    return [one["low"] <= one[key] <= one["high"] for one in records if "low" in one]


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


def read_records(file: Path) -> list[Record]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def measure_each(file: Path, places: Iterable[Record], measure: Callable[[Record], Record]) -> None:
    """Add a line to the file for each place that it lacks: what names it, and what was measured."""
    done = read_records(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    for place in places:
        if any(place.items() <= record.items() for record in done):
            continue
        began = time.monotonic()
        record = place | measure(place)
        with open(file, "a") as lines:
            lines.write(json.dumps(record) + "\n")
        print(f"{place}: {time.monotonic() - began:.0f} s", flush=True)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all have in common."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--output", type=Path, required=True, help="folder of the records")
    made.add_argument("--table", action="store_true", help="print what the records say")
    return made


def parser_of_sets(description: str | None) -> argparse.ArgumentParser:
    """Of a program that reads datasets."""
    made = parser(description)
    made.add_argument("--root", type=Path, default=Path("data"), help="folder of the datasets")
    return made
