"""What `tools/fit.py` finds on data whose answers are known: `python benchmarks/fit.py --output
DIR`.

Each cell is a fit of the heads on 1, 2, 4, 8 or 16 images of each class, drawn by a seed, and a
test on images that it never saw. A line of cells.jsonl in DIR has one cell, so that the same
command resumes. `--table` prints the table of docs/own_classes.md from them.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
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
from common.errors import UsageError
from common.files import checksum
from fit.candidates import CANDIDATES, SENTENCES
from fit.decision import Decision, decide
from fit.features import Features
from fit.heads import Heads
from fit.images import Photo
from fit.photos import Photos
from fit.report import suspects
from fit.request import FitRequest
from fit.result import Fit
from fit.trials import Examples
from inference.calibration import Threshold
from inference.classifier import PromptedClassifier

SETS = ("EuroSAT", "SmallCounts", "SmallLand", "SmallObjects", "SmallShapes", "SmallTextures")
ERRORS = 5, 20, 50  # of `--max-error`
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
            PromptedClassifier.zero_shot(
                "small", [each.replace("_", " ") for each in dataset.classnames]
            )
        )
        (self.x, self.y), (self.test_x, self.test_y) = (
            self.of(part, most)
            for part, most in zip((dataset.train_x, dataset.test), MOST.values(), strict=True)
        )

    def of(self, items: list, most: int) -> tuple[Tensor, Tensor]:
        labels = np.array([item.label for item in items])
        rng = np.random.default_rng(0)
        places = [
            rng.permutation(np.flatnonzero(labels == label))[:most] for label in np.unique(labels)
        ]
        chosen = np.sort(np.concatenate(places))
        paths = [items[place].impath for place in chosen]
        rows, _ = Features(self.heads.zero_shot, self.heads.tower).of(
            {path: checksum(Path(path)) for path in paths}
        )
        return torch.stack([rows[path].feature for path in paths]), torch.from_numpy(labels[chosen])


def cell(data: Data, shots: int, seed: int, swapped: bool) -> dict[str, Any]:
    """The record of one fit; if `swapped`, 5% of its labels are wrong."""
    rng = np.random.default_rng([seed, shots])
    names = data.heads.names
    data.heads.seed = seed
    places = [
        rng.permutation(np.flatnonzero(data.y == label))[:shots] for label in range(len(names))
    ]
    chosen = np.concatenate(places)
    x = data.x[chosen]
    y = data.y[chosen].clone()
    wrong = rng.permutation(len(y))[: round(0.05 * len(y)) if swapped else 0].tolist()
    for place in wrong:
        y[place] = (int(y[place]) + int(rng.integers(1, len(names)))) % len(names)
    images = [Photo(str(place), names[label]) for place, label in enumerate(y)]
    request = FitRequest(Path("images"), Path("model"), seed=seed)
    examples = Examples(x, y, np.arange(len(y)), names)
    candidates = [one for one in CANDIDATES if one.method != SENTENCES]
    began = time.process_time()
    with redirect_stdout(io.StringIO()):
        decision = decide(data.heads, examples, candidates, request)
    fit = Fit(request, Photos(images, names, {}, []), decision)
    record: dict[str, Any] = {
        "dataset": data.name,
        "shots": shots,
        "seed": seed,
        "swapped": swapped,
    }
    record |= {"seconds": time.process_time() - began, "chosen": decision.name}
    if swapped:
        first = [int(one["path"]) for one in suspects(fit)[: round(0.1 * len(y))]]
        return record | {"wrong": len(wrong), "found": len({*first} & {*wrong})}
    answers = {one: data.heads.answers(one, (x, y), data.test_x).numpy() for one in candidates}
    logits: Any = sum(weight * answers[one] for one, weight in decision.chosen)
    labels = data.test_y.numpy()
    methods: dict[str, float] = {}
    for one, values in answers.items():  # the first one of a method has its defaults
        methods.setdefault(one.method, 100 * float((values.argmax(axis=1) == labels).mean()))
    record |= {"methods": methods, "fit": 100 * float((logits.argmax(axis=1) == labels).mean())}
    if fit.estimate is None or fit.calibration is None:
        return record
    estimate = fit.estimate
    sets = fit.calibration.sets.apply(logits, 0.9)[np.arange(len(labels)), labels]
    record |= {
        "estimate": estimate.accuracy,
        "low": estimate.low,
        "high": estimate.high,
        "without_nesting": decision.without_nesting,
    }
    record["sets"] = [100 * float(sets[labels == label].mean()) for label in range(len(names))]
    record["max_error"] = kept_promises(decision, logits, logits.argmax(axis=1) == labels)
    return record


def kept_promises(
    decision: Decision, logits: NDArray[Any], correct: NDArray[np.bool_]
) -> dict[int, list[float]]:
    """Of each error that can be promised, in percent: the share of the images that are answered,
    and the share of wrong answers.
    """
    assert decision.trials is not None
    found = {}
    for error in ERRORS:
        try:
            fits = decision.logits[0], decision.trials.sample.labels, error / 100
            given = Threshold.fit(*fits).apply(logits)
        except UsageError:
            continue
        wrong = 100 * float((~correct[given]).mean()) if given.any() else 0.0
        found[error] = [100 * float(given.mean()), wrong]
    return found


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
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    if args.table:
        print("\n".join(report(done)))
        return
    finished = {(each["dataset"], each["shots"], each["seed"], each["swapped"]) for each in done}
    loaded: dict[str, Data] = {}
    args.output.mkdir(parents=True, exist_ok=True)
    cells = [
        (name, shots, seed)
        for seed in range(1, args.seeds + 1)
        for name in args.datasets
        for shots in args.shots
    ]
    for name, shots, seed in cells:
        for swapped in (False, True) if shots == 16 and seed <= 3 else (False,):
            if (name, shots, seed, swapped) in finished:
                continue
            data = loaded.setdefault(name, loaded.get(name) or Data(name, args.root))
            record = cell(data, shots, seed, swapped)
            with open(file, "a") as lines:
                lines.write(json.dumps(record) + "\n")
            print(f"{name} {shots} {seed}: {record['seconds']:.1f} s", flush=True)


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
    regrets = {}
    below = {}
    yield f"| data set | zero-shot | {' | '.join(f'{number} images' for number in shots)} |"
    yield "| --- " * (2 + len(shots)) + "|"
    for name in names:
        row = []
        for number in shots:
            here = [each for each in cells if (each["dataset"], each["shots"]) == (name, number)]
            if not here:
                continue
            methods = means(here)
            best = max(methods, key=methods.__getitem__)
            fit = mean(each["fit"] for each in here)
            regrets[name, number] = methods[best] - fit
            below[name, number] = methods["ZeroshotCLIP"] - fit
            row.append(f"{fit:.1f} ({fit - methods[best]:+.1f}, {best})")
        yield f"| {name} | {methods['ZeroshotCLIP']:.1f} | {' | '.join(row)} |"
    regret = mean(regrets.values())
    yield f"{len(cells)} fits; regret: mean {regret:.2f}, most {max(regrets.values()):.1f}"
    yield f"over 2.5: { {key: round(value, 1) for key, value in regrets.items() if value > 2.5} }"
    worse = {key: round(value, 1) for key, value in below.items() if value > 1}
    yield f"below zero-shot by more than 1: {worse}"
    for method, accuracy in means(cells).items():
        yield f"{method} everywhere: {accuracy:.1f}"
    yield f"fit everywhere: {mean(each['fit'] for each in cells):.1f}"


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
