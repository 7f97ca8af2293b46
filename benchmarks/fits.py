"""Shared by the benchmarks of fits: options, cells that resume, draws, fits and tables."""

import io
import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame, Series
from torch import Tensor

from common.errors import UsageError
from common.start import Parser
from fit.candidates import CANDIDATES, SENTENCES, Candidate
from fit.decision import Decision, decide_among
from fit.heads import Heads
from fit.plan import Plan
from fit.request import FitRequest
from fit.trials import Backbone, Examples
from inference.calibration import Threshold

HEADS = [one for one in CANDIDATES if one.method != SENTENCES]
RESUMES = "from the cells that are done"  # `run_command`
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
    began = time.process_time()
    _, decision = decided_among([Backbone("", heads, examples, candidates)], seed, end)
    return decision, time.process_time() - began


def decided_among(backbones: list[Backbone], seed: int, end: float) -> tuple[int, Decision]:
    """The place of the chosen backbone, and the decision among its heads."""
    with redirect_stdout(io.StringIO()):
        return decide_among(backbones, request_of(seed), Plan(end=end))


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


def contained(records: DataFrame, key: str) -> Series:
    """Whether the interval contains this accuracy, of each record with an estimate."""
    told = records.reindex(columns=[key, "low", "high"]).dropna()
    return told[key].between(told["low"], told["high"])


def covered(decision: Decision, logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """(images,): whether the set for 90% has the class."""
    assert decision.certainty is not None
    return decision.certainty.sets.apply(logits, 0.9)[np.arange(len(labels)), labels]


def kept_promises(
    decision: Decision, logits: NDArray[Any], labels: NDArray[Any], errors: Sequence[int]
) -> dict[int, list[float]]:
    """Of each of the errors in percent that can be promised: the share of the answered images, and
    of wrong answers among them, in percent.
    """
    assert decision.trials is not None
    sample = decision.trials.sample
    wrong = logits.argmax(axis=1) != labels
    kept = {}
    for error in errors:
        try:
            threshold = Threshold.fit(decision.logits[0], sample.labels, error / 100, sample=sample)
        except UsageError:
            continue
        answered = threshold.apply(logits)
        kept[error] = [percent(answered), percent(wrong[answered])]
    return kept


def percent(flags: NDArray[np.bool_]) -> float:
    """The share of true ones; 0 for none."""
    return 100 * float(flags.mean()) if len(flags) else 0.0


def parser(description: str | None) -> Parser:
    """The options that all have in common."""
    made = Parser(description=description)
    made.add_argument("--output", type=Path, required=True, help="folder of the records")
    made.add_argument("--table", action="store_true", help="print what the records say")
    made.add_argument("--sources", type=Path, nargs="+", default=[], help="opened packages")
    return made


def grid(**values: Iterable[Any]) -> Iterator[Record]:
    """What names each cell: all combinations, of which the last value changes fastest."""
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def run(
    args: Namespace,
    name: str,
    places: Iterable[Record],
    cell: Callable[..., Record],
    table: Callable[[DataFrame], Iterable[str]],
) -> None:
    """Add a line to a file of records for each place that it lacks: what names it, and what
    `cell(args, **place)` measures. With `--table`, print the lines of the table instead.
    """
    file = args.output / name
    done = [json.loads(line) for line in file.open()] if file.is_file() else []
    if args.table:
        if not done:
            raise UsageError(f"{file} has no records", "run the same command without --table")
        print("\n".join(table(DataFrame(done))))
        return
    torch.set_num_threads(1)
    file.parent.mkdir(parents=True, exist_ok=True)
    for place in places:
        if any(place.items() <= record.items() for record in done):
            continue
        began = time.monotonic()
        record = place | cell(args, **place)
        with open(file, "a") as lines:
            lines.write(json.dumps(record) + "\n")
        print(f"{place}: {time.monotonic() - began:.0f} s", flush=True)


def shown(values: Series) -> str:
    """Their mean and its standard error."""
    return f"{values.mean():.1f} ± {values.sem():.1f}"


def markdown(frame: DataFrame) -> str:
    """The columns and rows as a table of Markdown."""
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
