"""What `tools/fit.py` finds on data whose answers are known: `python benchmarks/fit.py --output
DIR`.

Each cell is a fit of the heads on 1, 2, 4, 8 or 16 images of each class, drawn by a seed, and a
test on images that it never saw. A line of cells.jsonl in DIR has one cell, so that the same
command resumes. `--table` prints the table of docs/own_classes.md from them.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "toolbox")]

import numpy as np
import torch
from dassl.data.datasets import DATASET_REGISTRY
from numpy.typing import NDArray

from benchmarks.fits import (
    ERRORS,
    HEADS,
    Data,
    Images,
    Record,
    contained,
    dataset,
    decided,
    estimate_of,
    kept_promises,
    measure_each,
    of_each_class,
    parser_of_sets,
    percent,
    read_records,
    request_of,
    small_heads,
)
from common.files import checksum
from fit.features import Features
from fit.heads import Heads
from fit.photos import Photos
from fit.report import suspects
from fit.result import Fit
from fit.rows import Photo
from fit.trials import Examples

SETS = ("EuroSAT", "SmallCounts", "SmallLand", "SmallObjects", "SmallShapes", "SmallTextures")

MOST = {"train": 100, "test": 200}  # images of a class, of EuroSAT


@cache
def data_of(name: str, root: Path) -> Data:
    """A dataset with the features of its images; synthetic ones have more images than those of a
    run, and others.
    """
    kind: Any = DATASET_REGISTRY.get(name)
    if getattr(kind, "is_synthetic", False):
        more = {
            "per_class": {"train": 32, "val": 0, "test": 60},
            "dataset_dir": f"{kind.dataset_dir}_fit",
        }
        kind = type(f"{name}Fit", (kind,), more)
    found = dataset(kind, root)
    heads = small_heads(found.classnames)
    train = images_of(heads, found.train_x, MOST["train"])
    return Data(heads, train, images_of(heads, found.test, MOST["test"]))


def images_of(heads: Heads, items: list[Any], most: int) -> Images:
    """At most so many images of each class."""
    labels = np.array([item.label for item in items])
    chosen = np.sort(of_each_class(labels, most, np.random.default_rng(0)))
    keys = {items[place].impath: checksum(Path(items[place].impath)) for place in chosen}
    rows, _ = Features(heads.zero_shot, heads.tower).of(keys)
    return Images(torch.stack([rows[path].feature for path in keys]), labels[chosen])


def cell(data: Data, shots: int, seed: int, swapped: bool) -> Record:
    """The record of one fit; if `swapped`, 5% of its labels are wrong."""
    drawn, wrong = data.draw(shots, seed, 5 * swapped)
    examples = drawn.examples(data.heads.names)
    decision, seconds = decided(data.heads, examples, seed)
    fit = Fit(request_of(seed), photos_of(examples), decision)
    record: Record = {"seconds": seconds, "chosen": decision.name}
    if swapped:
        return record | {"wrong": len(wrong), "found": len(first_suspects(fit) & wrong)}
    return record | answers_of(data, examples, fit)


def first_suspects(fit: Fit) -> set[int]:
    """The places of the tenth of the photos whose labels are least likely."""
    tenth = round(0.1 * len(fit.photos.training))
    return {int(one["path"]) for one in suspects(fit)[:tenth]}


def photos_of(examples: Examples) -> Photos:
    """Photos whose paths are their places."""
    names = list(examples.names)
    images = [Photo(str(place), names[label]) for place, label in enumerate(examples.y)]
    return Photos(images, names, {}, [])


def answers_of(data: Data, examples: Examples, fit: Fit) -> Record:
    """The answers of the fit and of each method for the test images, and the fit's promises."""
    labels = data.test.labels
    answers = {one: data.heads.answers(one, examples.seen, data.test.x).numpy() for one in HEADS}
    logits: Any = sum(weight * answers[one] for one, weight in fit.decision.chosen)
    methods: dict[str, float] = {}
    for one, values in answers.items():  # the first one of a method has its defaults
        methods.setdefault(one.method, percent(values.argmax(axis=1) == labels))
    record = {"methods": methods, "fit": percent(logits.argmax(axis=1) == labels)}
    if fit.calibration is None:
        return record
    return record | estimate_of(fit.decision) | certainty_of(fit, logits, labels)


def certainty_of(fit: Any, logits: NDArray[Any], labels: NDArray[Any]) -> Record:
    """The share of each class whose sets have it; and of each error that can be promised the shares
    of answered images and of wrong answers; in percent.
    """
    sets = fit.calibration.sets.apply(logits, 0.9)[np.arange(len(labels)), labels]
    return {
        "without_nesting": fit.decision.without_nesting,
        "sets": [percent(sets[labels == label]) for label in np.unique(labels)],
        "max_error": kept_promises(fit.decision, logits, labels),
    }


def main() -> None:
    parser = parser_of_sets(__doc__)
    parser.add_argument("--datasets", nargs="+", default=SETS)
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    file = args.output / "cells.jsonl"
    if args.table:
        print("\n".join(report(read_records(file))))
        return

    def measured(place: Record) -> Record:
        return cell(data_of(place["dataset"], args.root), *list(place.values())[1:])

    measure_each(file, cells(args), measured)


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """Data set, images of each class, seed, and whether labels are swapped, of each fit."""
    for seed in range(1, args.seeds + 1):
        for name, shots in product(args.datasets, args.shots):
            place = {"dataset": name, "shots": shots, "seed": seed}
            yield place | {"swapped": False}
            if shots == 16 and seed <= 3:
                yield place | {"swapped": True}


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


def report(cells: list[Record]) -> Iterator[str]:
    """The lines of the table, and of what it says."""
    honest = [each for each in cells if not each["swapped"]]
    told = [each for each in honest if "estimate" in each]
    shots = sorted({each["shots"] for each in honest})
    names = sorted({each["dataset"] for each in honest})
    yield from accuracies(honest, names, shots)
    yield from estimates(told, shots)
    yield from promises(told, names)
    for name in names:
        here = [each for each in cells if each["swapped"] and each["dataset"] == name]
        if here:
            hits = sum(each["found"] for each in here)
            wrong = sum(each["wrong"] for each in here)
            yield f"{name}: {hits} of {wrong} swapped labels are among the first 10%"
    for number in shots:
        seconds = mean(each["seconds"] for each in honest if each["shots"] == number)
        yield f"processor seconds of a fit with {number} images: {seconds:.1f}"


def accuracies(cells: list[Record], names: list[str], shots: list[int]) -> Iterator[str]:
    """The table of accuracies, and how often another method would have been better."""
    yield f"| data set | zero-shot | {' | '.join(f'{number} images' for number in shots)} |"
    yield "| --- " * (2 + len(shots)) + "|"
    worse = {}  # than the best method, and than zero-shot CLIP
    for name in names:
        row = []
        for number in shots:
            here = [each for each in cells if (each["dataset"], each["shots"]) == (name, number)]
            if here:
                methods = means(here)
                best = max(methods, key=methods.__getitem__)
                fit = mean(each["fit"] for each in here)
                worse[name, number] = methods[best] - fit, methods["ZeroshotCLIP"] - fit
                row.append(f"{fit:.1f} ({fit - methods[best]:+.1f}, {best})")
        yield f"| {name} | {methods['ZeroshotCLIP']:.1f} | {' | '.join(row)} |"
    yield from losses(worse, len(cells))
    yield from (f"{name} everywhere: {fit:.1f}" for name, fit in means(cells).items())
    yield f"fit everywhere: {mean(each['fit'] for each in cells):.1f}"


def losses(worse: dict[tuple[str, int], tuple[float, float]], fits: int) -> Iterator[str]:
    """How much better the best method and zero-shot CLIP would have been than the fits."""
    regrets = {key: pair[0] for key, pair in worse.items()}
    below = {key: pair[1] for key, pair in worse.items()}
    most = max(regrets.values())
    yield f"{fits} fits; regret: mean {mean(regrets.values()):.2f}, most {most:.1f}"
    yield f"over 2.5: {above(regrets, 2.5)}"
    yield f"below zero-shot by more than 1: {above(below, 1)}"


def above(values: dict[tuple[str, int], float], least: float) -> dict[tuple[str, int], float]:
    return {key: round(value, 1) for key, value in values.items() if value > least}


def means(cells: list[Record]) -> dict[str, float]:
    """The mean accuracy of each method."""
    names = cells[0]["methods"]
    return {name: mean(each["methods"][name] for each in cells) for name in names}


def estimates(told: list[Record], shots: list[int]) -> Iterator[str]:
    """How the estimates and their intervals compare with the accuracies."""
    errors = np.array([each["estimate"] - each["fit"] for each in told])
    inside = mean(contained(told, "fit"))
    more = mean(each["without_nesting"] - each["estimate"] for each in told)
    yield f"interval: {100 * inside:.1f}% of {len(told)} contain the accuracy"
    absolute = np.abs(errors).mean()
    yield f"estimate - accuracy: mean {errors.mean():.2f}, mean of absolute values {absolute:.2f}"
    yield f"without nesting the estimate is {more:.2f} higher"
    for number in shots[1:]:
        width = mean(each["high"] - each["low"] for each in told if each["shots"] == number)
        yield f"width of the interval with {number} images: {width:.1f}"


def promises(told: list[Record], names: list[str]) -> Iterator[str]:
    """How sets of 90% and thresholds keep their promises."""
    by_set = {}
    for name in names:
        by_set[name] = round(
            mean(mean(each["sets"]) for each in told if each["dataset"] == name), 1
        )
    yield f"sets for 90%: mean {mean(mean(each['sets']) for each in told):.1f}, {by_set}"
    sets = np.concatenate([each["sets"] for each in told])
    percentiles = np.percentile(sets, [5, 25, 50, 75, 95]).round(0)
    yield f"of single classes, 5%, 25%, 50%, 75%, 95% of them: {percentiles}"
    for error in map(str, ERRORS):
        given = [each["max_error"][error] for each in told if error in each["max_error"]]
        over = sum(wrong > float(error) for _, wrong in given)
        share = mean(share for share, _ in given) if given else 0.0
        wrong = mean(wrong for _, wrong in given) if given else 0.0
        yield (
            f"--max-error {error}: accepted in {len(given)} of {len(told)} fits, more errors in "
            f"{over} of them"
        )
        yield f"  {share:.0f}% of the images answered, {wrong:.1f}% of these wrong"


if __name__ == "__main__":
    main()
