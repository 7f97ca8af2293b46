"""What `tools/fit.py` finds on real images beside recipes of scikit-learn: `python -m
benchmarks.real --sources DIR --output DIR`.

The encoders are the small CLIP and one that is built from installed wheels (`encoders`), the data
sets those of `images`. Each cell is a fit of the heads on so many images of each class, drawn by a
seed, with some of the labels swapped, and a test on images that it never saw. A line of cells.jsonl
has one cell, so that the same command resumes. `--table` prints what the cells say.
"""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fits import (
    RESUMES,
    Data,
    Images,
    Record,
    covered,
    decided,
    estimate_of,
    grid,
    kept_promises,
    percent,
    request_of,
    run,
)
from fit.candidates import CANDIDATES, ZERO_SHOT, Candidate
from fit.decision import Decision
from fit.photos import Photos
from fit.report import suspects
from fit.result import Fit
from fit.rows import Photo
from fit.story import methods_of
from fit.trials import Examples
from runs.session import run_command

from . import recipes
from .data import SMALL, data_for, parser
from .table import ERRORS, table

SHOTS = 1, 2, 4, 8, 16, 40
SWAPPED = 0, 5, 15  # percent of the labels
FEWEST_WITH_SWAPS = 16  # images of a class


def measured(
    data: Data, shots: int, seed: int, swapped: int, methods: Sequence[str] = ()
) -> Record:
    """The record of one fit, of all heads or those of some methods, and of its rivals."""
    drawn, wrong = data.draw(shots, seed, swapped)
    candidates = methods_of(request_of(seed, methods), CANDIDATES, data.heads)
    examples = drawn.examples(data.heads.names)
    # No time is left for the curve, which the table does not show
    decision, seconds = decided(data.heads, examples, seed, candidates, end=0.0)
    record: Record = {"seconds": seconds, "chosen": decision.name}
    if swapped:
        record["found"] = len(wrong & first_suspects(examples, decision))
        record["wrong"] = len(wrong)
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


def first_suspects(examples: Examples, decision: Decision) -> set[int]:
    """The places of the tenth of the images whose labels are least likely."""
    names = list(examples.names)
    # Their paths are their places
    images = [Photo(str(place), names[label]) for place, label in enumerate(examples.y)]
    fit = Fit(request_of(0), Photos(images, names, {}, []), decision)
    tenth = round(0.1 * len(images))
    return {int(one["path"]) for one in suspects(fit)[:tenth]}


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
    inside = covered(decision, logits, labels)
    return estimate_of(decision) | {
        "sets": percent(inside),
        "sets_of_classes": [percent(inside[labels == label]) for label in np.unique(labels)],
        "max_error": kept_promises(decision, logits, labels, ERRORS),
    }


def places(args: Namespace) -> Iterator[Record]:
    """What names each cell, seed after seed."""
    for place in grid(
        seed=args.seeds,
        set=args.sets,
        encoder=args.encoders,
        shots=args.shots,
        swapped=args.swapped,
    ):
        if not place["swapped"] or place["shots"] >= FEWEST_WITH_SWAPS:
            yield place


def cell(args: Namespace, set: str, encoder: str, **draw: int) -> Record:
    return measured(data_for(args, set, encoder), methods=args.methods, **draw)


def main() -> None:
    options = parser(__doc__, encoders=[SMALL, "lite2"], shots=SHOTS)
    options.add_argument("--swapped", nargs="+", type=int, default=SWAPPED)
    args = options.parse_args()
    run(args, "cells.jsonl", places(args), cell, table)


if __name__ == "__main__":
    run_command(main, RESUMES)
