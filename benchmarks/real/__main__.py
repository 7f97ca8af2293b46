"""What `tools/fit.py` finds on real images beside recipes of scikit-learn: `python -m
benchmarks.real --sources DIR --output DIR`.

The encoders are the small CLIP and one that is built from installed wheels (`encoders`), the data
sets those of `images`. Each cell is a fit of the heads on so many images of each class, drawn by a
seed, with some of the labels swapped, and a test on images that it never saw. A line of cells.jsonl
has one cell, so that the same command resumes. `--table` prints what the cells say.
"""

import argparse
import io
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.fit import first_suspects, photos_of
from benchmarks.fits import add_record, percent, promised, read_records
from common.errors import UsageError
from fit.candidates import CANDIDATES, ZERO_SHOT
from fit.decision import Decision, decide_among
from fit.plan import Plan
from fit.report import probabilities
from fit.request import FitRequest
from fit.result import Fit
from fit.story import methods_of
from fit.trials import Backbone, Examples

from . import recipes
from .data import SMALL, Data, loaded
from .options import parser_of_heads
from .table import table

SHOTS = 1, 2, 4, 8, 16, 40
SWAPPED = 0, 5, 15  # percent of the labels
FEWEST_WITH_SWAPS = 16  # images of a class
ERRORS = 5, 20, 50  # of `--max-error`


def cell(data: Data, shots: int, seed: int, swapped: int, methods: Sequence[str]) -> dict[str, Any]:
    """The record of one fit, of all heads or those of some methods, and of its rivals."""
    heads = data.heads
    heads.seed = seed
    x, labels, wrong = data.draw(shots, seed, swapped)
    y = torch.from_numpy(labels)
    request = FitRequest(Path("images"), Path("model"), methods=tuple(methods), seed=seed)
    candidates = methods_of(request, CANDIDATES, heads)
    examples = Examples(x, y, np.arange(len(y)), heads.names)
    began = time.process_time()
    with redirect_stdout(io.StringIO()):
        # No time is left for the curve, which the table does not show
        backbone = Backbone("", heads, examples, candidates)
        _, decision = decide_among([backbone], request, Plan(end=0.0))
    seconds = time.process_time() - began
    answers = {one: heads.answers(one, (x, y), data.test_x).numpy() for one in candidates}
    logits: Any = sum(weight * answers[one] for one, weight in decision.chosen)
    correct = logits.argmax(axis=1) == data.test_y
    singles = {
        one.name: 100 * float(np.mean(values.argmax(axis=1) == data.test_y))
        for one, values in answers.items()
    }
    record = {"fit": 100 * float(correct.mean()), "singles": singles, "seconds": seconds}
    record["chosen"] = decision.name
    if swapped:
        result = Fit(request, photos_of(examples), decision)
        found = {"found": first_suspects(result), "cleanlab": first_of_cleanlab(result)}
        record |= {name: len(places & wrong) for name, places in found.items()}
        record["wrong"] = len(wrong)
    record["recipes"] = rivals(data, x, labels)
    return record | promises(decision, logits, data.test_y)


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


def rivals(data: Data, x: Tensor, labels: NDArray[np.int64]) -> dict[str, float]:
    """The accuracies of the recipes, on features before the projection and behind it."""
    found = {}
    for where, method in (("before", "VisionProbe"), ("behind", ZERO_SHOT)):
        inputs, test = (data.heads.inputs(method, part).numpy() for part in (x, data.test_x))
        accuracies = recipes.accuracies(inputs, labels, test, data.test_y)
        found |= {f"{name} {where}": accuracy for name, accuracy in accuracies.items()}
    return found


def promises(decision: Decision, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, Any]:
    """The estimate, and how sets and thresholds keep what they promise."""
    if decision.certainty is None or decision.trials is None:
        return {}
    estimate = decision.estimates["folder"]
    wrong = logits.argmax(axis=1) != labels
    inside = decision.certainty.sets.apply(logits, 0.9)[np.arange(len(labels)), labels]
    by_class = [100 * float(inside[labels == label].mean()) for label in np.unique(labels)]
    errors = {
        error: [percent(given), percent(wrong[given])]
        for error, given in promised(decision, logits, ERRORS)
    }
    return {
        "estimate": estimate.accuracy,
        "low": estimate.low,
        "high": estimate.high,
        "sets": 100 * float(inside.mean()),
        "sets_of_classes": by_class,
        "max_error": errors,
    }


def parsed() -> argparse.Namespace:
    parser = parser_of_heads(__doc__, encoders=[SMALL, "lite2"], shots=SHOTS)
    parser.add_argument("--swapped", nargs="+", type=int, default=SWAPPED)
    return parser.parse_args()


def cells(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What names each cell, seed after seed."""
    names = "seed", "set", "encoder", "shots", "swapped"
    for values in product(args.seeds, args.sets, args.encoders, args.shots, args.swapped):
        one = dict(zip(names, values, strict=True))
        if not one["swapped"] or one["shots"] >= FEWEST_WITH_SWAPS:
            yield one


def main() -> None:
    args = parsed()
    file = args.output / "cells.jsonl"
    done = read_records(file)
    if args.table:
        print("\n".join(table(done)))
        return
    torch.set_num_threads(1)
    for one in cells(args):
        if any(one.items() <= record.items() for record in done):
            continue
        data = loaded(one["set"], one["encoder"], tuple(args.sources), args.output)
        draw = one["shots"], one["seed"], one["swapped"]
        record = one | cell(data, *draw, args.methods)
        add_record(file, record)
        print(f"{one}: {record['fit']:.1f}, {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
