"""What `tools/fit.py` finds on data whose answers are known: `python benchmarks/fit.py --output
DIR`.

Each cell is a fit of the heads on 1, 2, 4, 8 or 16 images of each class, drawn by a seed, and a
test on images that it never saw. A line of cells.jsonl in DIR has one cell, so that the same
command resumes. `--table` prints the table of docs/own_classes.md from them.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent),
    str(Path(__file__).resolve().parent.parent / "toolbox"),
]

import numpy as np
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from numpy.typing import NDArray
from torch import Tensor

import datasets
from benchmarks.fits import (
    ERRORS,
    HEADS,
    add_record,
    decided,
    kept_promises,
    of_each_class,
    percent,
    read_records,
)
from common.files import checksum
from common.names import plain
from fit.features import Features
from fit.heads import Heads
from fit.photos import Photos
from fit.report import suspects
from fit.request import FitRequest
from fit.result import Fit
from fit.rows import Photo
from fit.trials import Examples
from inference.classifier import PromptedClassifier

SETS = ("EuroSAT", "SmallCounts", "SmallLand", "SmallObjects", "SmallShapes", "SmallTextures")

MOST = {"train": 100, "test": 200}  # images of a class, of EuroSAT


class Data:
    """A dataset with the features of its images; synthetic ones have more images than those of a
    run, and others.

    Attributes:
        x, y: of training images: features (images, width) and labels (images,).
        test_x, test_y: of test images.
    """

    def __init__(self, name: str, root: Path):
        cfg = get_cfg_default()
        datasets.extend_cfg(cfg)
        cfg.DATASET.ROOT = str(root)
        kind: Any = DATASET_REGISTRY.get(name)
        if getattr(kind, "is_synthetic", False):
            more = {
                "per_class": {"train": 32, "val": 0, "test": 60},
                "dataset_dir": f"{kind.dataset_dir}_fit",
            }
            kind = type(f"{name}Fit", (kind,), more)
        dataset = kind(cfg)
        self.name = name
        self.heads = Heads(
            PromptedClassifier.zero_shot("small", list(map(plain, dataset.classnames)))
        )
        (self.x, self.y), (self.test_x, self.test_y) = (
            self.of(part, most)
            for part, most in zip((dataset.train_x, dataset.test), MOST.values(), strict=True)
        )

    def of(self, items: list, most: int) -> tuple[Tensor, Tensor]:
        labels = np.array([item.label for item in items])
        chosen = np.sort(of_each_class(labels, most, np.random.default_rng(0)))
        paths = [items[place].impath for place in chosen]
        rows, _ = Features(self.heads.zero_shot, self.heads.tower).of(
            {path: checksum(Path(path)) for path in paths}
        )
        return torch.stack([rows[path].feature for path in paths]), torch.from_numpy(labels[chosen])


def examples_of(data: Data, shots: int, seed: int, swapped: bool) -> tuple[Examples, list[int]]:
    """So many images of each class, and the places of wrong labels; if `swapped`, 5% are."""
    rng = np.random.default_rng([seed, shots])
    names = data.heads.names
    chosen = of_each_class(data.y.numpy(), shots, rng)
    y = data.y[chosen].clone()
    wrong = rng.permutation(len(y))[: round(0.05 * len(y)) if swapped else 0].tolist()
    for place in wrong:
        y[place] = (int(y[place]) + int(rng.integers(1, len(names)))) % len(names)
    return Examples(data.x[chosen], y, np.arange(len(y)), names), wrong


def cell(data: Data, shots: int, seed: int, swapped: bool) -> dict[str, Any]:
    """The record of one fit; if `swapped`, 5% of its labels are wrong."""
    examples, wrong = examples_of(data, shots, seed, swapped)
    request = FitRequest(Path("images"), Path("model"), seed=seed)
    decision, seconds = decided(data.heads, examples, request)
    fit = Fit(request, photos_of(examples), decision)
    record: dict[str, Any] = {"dataset": data.name, "shots": shots, "seed": seed}
    record |= {"swapped": swapped, "seconds": seconds, "chosen": decision.name}
    if swapped:
        return record | {"wrong": len(wrong), "found": len(first_suspects(fit) & {*wrong})}
    return record | tested(data, examples, fit)


def first_suspects(fit: Fit) -> set[int]:
    """The places of the tenth of the photos whose labels are least likely."""
    tenth = round(0.1 * len(fit.photos.training))
    return {int(one["path"]) for one in suspects(fit)[:tenth]}


def photos_of(examples: Examples) -> Photos:
    """Photos whose paths are their places."""
    names = list(examples.names)
    images = [Photo(str(place), names[label]) for place, label in enumerate(examples.y)]
    return Photos(images, names, {}, [])


def tested(data: Data, examples: Examples, fit: Fit) -> dict[str, Any]:
    """What the fit and each method answer for the test images, and what the fit promised."""
    answers = answers_of(data, examples)
    logits: Any = sum(weight * answers[one] for one, weight in fit.decision.chosen)
    labels = data.test_y.numpy()
    methods: dict[str, float] = {}
    for one, values in answers.items():  # the first one of a method has its defaults
        methods.setdefault(one.method, percent(values.argmax(axis=1) == labels))
    correct = logits.argmax(axis=1) == labels
    record = {"methods": methods, "fit": percent(correct)}
    if fit.estimate is None or fit.calibration is None:
        return record
    return record | certainty_of(fit, logits, labels)


def answers_of(data: Data, examples: Examples) -> dict[Any, NDArray[Any]]:
    """The logits (images, classes) of each head for the test images."""
    learned = (examples.x, examples.y)
    return {one: data.heads.answers(one, learned, data.test_x).numpy() for one in HEADS}


def certainty_of(fit: Any, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, Any]:
    """The estimate of a fit; the share of each class whose sets have it; and of each error that can
    be promised the shares of answered images and of wrong answers; in percent.
    """
    sets = fit.calibration.sets.apply(logits, 0.9)[np.arange(len(labels)), labels]
    record: dict[str, Any] = {
        "estimate": fit.estimate.accuracy,
        "low": fit.estimate.low,
        "high": fit.estimate.high,
        "without_nesting": fit.decision.without_nesting,
    }
    record["sets"] = [percent(sets[labels == label]) for label in np.unique(labels)]
    record["max_error"] = kept_promises(fit.decision, logits, labels)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of cells.jsonl")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the datasets")
    parser.add_argument("--datasets", nargs="+", default=SETS)
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--table", action="store_true", help="print what the cells say, and run nothing"
    )
    args = parser.parse_args()
    file = args.output / "cells.jsonl"
    done = read_records(file)
    if args.table:
        print("\n".join(report(done)))
        return
    finished = {(each["dataset"], each["shots"], each["seed"], each["swapped"]) for each in done}
    args.output.mkdir(parents=True, exist_ok=True)
    loaded: dict[str, Data] = {}
    for key in cells(args):
        if key in finished:
            continue
        name, *values = key
        if name not in loaded:
            loaded[name] = Data(name, args.root)
        record = cell(loaded[name], *values)
        add_record(file, record)
        print(f"{name} {key[1]} {key[2]}: {record['seconds']:.1f} s", flush=True)


def cells(args: argparse.Namespace) -> Iterator[tuple[str, int, int, bool]]:
    """Data set, images of each class, seed, and whether labels are swapped, of each fit."""
    for seed in range(1, args.seeds + 1):
        for name, shots in product(args.datasets, args.shots):
            yield name, shots, seed, False
            if shots == 16 and seed <= 3:
                yield name, shots, seed, True


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


def report(cells: list[dict[str, Any]]) -> Iterator[str]:
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


def accuracies(cells: list[dict[str, Any]], names: list[str], shots: list[int]) -> Iterator[str]:
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


def means(cells: list[dict[str, Any]]) -> dict[str, float]:
    """The mean accuracy of each method."""
    names = cells[0]["methods"]
    return {name: mean(each["methods"][name] for each in cells) for name in names}


def estimates(told: list[dict[str, Any]], shots: list[int]) -> Iterator[str]:
    """How the estimates and their intervals compare with the accuracies."""
    errors = np.array([each["estimate"] - each["fit"] for each in told])
    inside = mean(each["low"] <= each["fit"] <= each["high"] for each in told)
    more = mean(each["without_nesting"] - each["estimate"] for each in told)
    yield f"interval: {100 * inside:.1f}% of {len(told)} contain the accuracy"
    absolute = np.abs(errors).mean()
    yield f"estimate - accuracy: mean {errors.mean():.2f}, mean of absolute values {absolute:.2f}"
    yield f"without nesting the estimate is {more:.2f} higher"
    for number in shots[1:]:
        width = mean(each["high"] - each["low"] for each in told if each["shots"] == number)
        yield f"width of the interval with {number} images: {width:.1f}"


def promises(told: list[dict[str, Any]], names: list[str]) -> Iterator[str]:
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
