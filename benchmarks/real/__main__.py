"""What `tools/fit.py` finds on real images beside recipes of scikit-learn: `python -m
benchmarks.real --sources DIR --output DIR`.

The encoders are the small CLIP and one that is built from installed wheels (`encoders`), the data
sets those of `images`. Each cell is a fit of the heads on so many images of each class, drawn by a
seed, with some of the labels swapped, and a test on images that it never saw. A line of cells.jsonl
has one cell, so that the same command resumes. `--table` prints what the cells say.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fit import first_suspects, photos_of
from benchmarks.fits import (
    Data,
    Images,
    Record,
    decided,
    estimate_of,
    kept_promises,
    measure_each,
    percent,
    read_records,
    request_of,
)
from common.errors import UsageError
from fit.candidates import CANDIDATES, ZERO_SHOT, Candidate
from fit.decision import Decision
from fit.report import probabilities
from fit.result import Fit
from fit.story import methods_of
from fit.trials import Examples

from . import recipes
from .data import SMALL, loaded
from .options import parser_of_heads
from .table import table

SHOTS = 1, 2, 4, 8, 16, 40
SWAPPED = 0, 5, 15  # percent of the labels
FEWEST_WITH_SWAPS = 16  # images of a class


def cell(data: Data, shots: int, seed: int, swapped: int, methods: Sequence[str]) -> Record:
    """The record of one fit, of all heads or those of some methods, and of its rivals."""
    drawn, wrong = data.draw(shots, seed, swapped)
    candidates = methods_of(request_of(seed, methods), CANDIDATES, data.heads)
    examples = drawn.examples(data.heads.names)
    # No time is left for the curve, which the table does not show
    decision, seconds = decided(data.heads, examples, seed, candidates, end=0.0)
    record: Record = {"seconds": seconds, "chosen": decision.name}
    if swapped:
        record |= doubted(Fit(request_of(seed), photos_of(examples), decision), wrong)
    record["recipes"] = rivals(data, drawn)
    return record | answers_of(data, examples, decision, candidates)


def answers_of(
    data: Data, examples: Examples, decision: Decision, candidates: Sequence[Candidate]
) -> Record:
    """The answers of the fit and of each candidate for the test images, and the fit's promises."""
    answers = {
        one: data.heads.answers(one, examples.seen, data.test.x).numpy() for one in candidates
    }
    singles = {one.name: accuracy(logits, data) for one, logits in answers.items()}
    chosen: Any = sum(weight * answers[one] for one, weight in decision.chosen)
    record: Record = {"fit": accuracy(chosen, data), "singles": singles}
    return record | promises(decision, chosen, data.test.labels)


def accuracy(logits: NDArray[Any], data: Data) -> float:
    """Of logits for the test images, in percent."""
    return percent(logits.argmax(axis=1) == data.test.labels)


def doubted(fit: Fit, wrong: set[int]) -> Record:
    """How many wrong labels are among the first to check."""
    return {
        "found": len(first_suspects(fit) & wrong),
        "cleanlab": len(first_of_cleanlab(fit) & wrong),
        "wrong": len(wrong),
    }


def first_of_cleanlab(fit: Fit) -> set[int]:
    """The places of the tenth of the photos whose labels cleanlab doubts most, by the same
    probabilities.
    """
    from cleanlab.rank import get_label_quality_scores

    trials = fit.decision.trials
    if fit.calibration is None or trials is None:
        return set()
    scores = get_label_quality_scores(trials.sample.labels, probabilities(fit, fit.calibration))
    tenth = round(0.1 * len(fit.photos.training))
    return {*trials.held[np.argsort(scores, kind="stable")[:tenth]].tolist()}


def rivals(data: Data, drawn: Images) -> dict[str, float]:
    """The accuracies of the recipes, on features before the projection and behind it."""
    found: dict[str, float] = {}
    for where, method in (("before", "VisionProbe"), ("behind", ZERO_SHOT)):
        train, test = (
            part._replace(x=data.heads.inputs(method, part.x)) for part in (drawn, data.test)
        )
        accuracies = recipes.accuracies(train, test)
        found |= {f"{name} {where}": value for name, value in accuracies.items()}
    return found


def promises(decision: Decision, logits: NDArray[Any], labels: NDArray[Any]) -> Record:
    """The estimate, and how sets and thresholds keep what they promise."""
    if decision.certainty is None:
        return {}
    inside = decision.certainty.sets.apply(logits, 0.9)[np.arange(len(labels)), labels]
    return estimate_of(decision) | {
        "sets": percent(inside),
        "sets_of_classes": [percent(inside[labels == label]) for label in np.unique(labels)],
        "max_error": kept_promises(decision, logits, labels),
    }


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """What names each cell, seed after seed."""
    names = "seed", "set", "encoder", "shots", "swapped"
    for values in product(args.seeds, args.sets, args.encoders, args.shots, args.swapped):
        one = dict(zip(names, values, strict=True))
        if not one["swapped"] or one["shots"] >= FEWEST_WITH_SWAPS:
            yield one


def main() -> None:
    parser = parser_of_heads(__doc__, encoders=[SMALL, "lite2"], shots=SHOTS)
    parser.add_argument("--swapped", nargs="+", type=int, default=SWAPPED)
    args = parser.parse_args()
    file = args.output / "cells.jsonl"
    if args.table:
        print("\n".join(table(read_records(file))))
        return

    def measured(place: Record) -> Record:
        seed, name, encoder, shots, swapped = place.values()
        data = loaded(name, encoder, tuple(args.sources), args.output)
        return cell(data, shots, seed, swapped, args.methods)

    torch.set_num_threads(1)
    measure_each(file, cells(args), measured)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
