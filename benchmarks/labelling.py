"""What labels buy: `python benchmarks/labelling.py --output DIR`.

The methods of `measures/labelling.py` ask for labels of pools of EuroSAT, of drawn landscapes, and
of sets of `benchmarks.real`, with the small CLIP. A line of labelling.jsonl in DIR has one method
on one pool, so that the same command resumes; `--table` prints the tables of docs/labelling.md
from them.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent),
    str(Path(__file__).resolve().parent.parent / "toolbox"),
]

import numpy as np
import torch
from dassl.config import get_cfg_default
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.stats import sem
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import datasets
from benchmarks.fits import add_record, decided, of_each_class, percent, read_records
from benchmarks.near_copies import eurosat, features, logits_of, pictures
from benchmarks.real.data import SMALL, loaded
from common.names import plain
from datasets.small_world import SmallLand
from fit.candidates import CANDIDATES, Candidate
from fit.decision import Decision
from fit.heads import Heads
from fit.labelling import DRAWN
from fit.request import FitRequest
from fit.trials import Examples
from inference.classifier import PromptedClassifier
from measures.labelling import METHODS, Pool, choose, uncertain
from trainers.base.prompted import normalize

TRAIN = 400  # images of each class, of which pools are drawn
OF_POOL = 200
TEST = 100
RANKED = ", 1/rank"  # after the name of a set: sizes of classes fall so
POOLS = "EuroSAT", "EuroSAT" + RANKED, "landscapes"
SETS = "digits", "emoji", "fashion_mnist", "openclipart", "stamps", "stamps_fine"
REAL = tuple(name + kind for name in SETS for kind in ("", RANKED))
POINTS = 0.5, 1, 2, 4, 8, 16  # labels for each class
LEARNERS = "SSText", "logistic"
COMMAND = "the command"  # the default, and the last quarter at random
BALANCED = "balanced by true labels"  # which nobody has
ALL = (*METHODS, "margin", COMMAND, BALANCED)
HEAD = Candidate("SSText", {"RULE": "SStext"})
OF_FIT = "ZeroshotCLIP", "SSText", "GDA", "VisionProbe"


class Landscapes(SmallLand):
    """SmallLand with more training images."""

    dataset_dir = "labelling_land"
    per_class = {"train": OF_POOL, "val": 1, "test": TEST}


class Images(NamedTuple):
    """Features from before the projection (images, width), and labels (images,)."""

    x: Tensor
    labels: NDArray[np.int64]


class Data(NamedTuple):
    """The images that pools are drawn from, and those of the test."""

    heads: Heads
    train: Images
    test: Images


def images_of(heads: Heads, items: Sequence[Any], number: int) -> Images:
    """So many images of each class."""
    labels = np.array([item.label for item in items])
    places = of_each_class(labels, number, np.random.default_rng(0))
    return Images(features(heads, pictures([items[one].impath for one in places])), labels[places])


def data_of(root: Path, kind: str) -> Data:
    if kind in REAL:
        found = loaded(kind.removesuffix(RANKED), SMALL, (), root)
        test = Images(found.test_x, found.test_y)
        return Data(found.heads, Images(found.x, found.y), test)
    if kind == POOLS[2]:
        cfg = get_cfg_default()
        datasets.extend_cfg(cfg)
        cfg.DATASET.ROOT = str(root)
        dataset = Landscapes(cfg)
    else:
        dataset = eurosat(root)
    heads = Heads(PromptedClassifier.zero_shot("small", list(map(plain, dataset.classnames))))
    train = images_of(heads, dataset.train_x, TRAIN)
    return Data(heads, train, images_of(heads, dataset.test, TEST))


def imbalanced(labels: NDArray[np.int64], largest: int, seed: int) -> NDArray[np.int64]:
    """The places of a pool whose classes, in a random order, have largest // rank images."""
    rng = np.random.default_rng(seed)
    kept = []
    for rank, label in enumerate(rng.permutation(labels.max() + 1), start=1):
        own = np.flatnonzero(labels == label)
        kept.append(rng.permutation(own)[: largest // rank])
    return np.sort(np.concatenate(kept))


def drawn(data: Data, kind: str, seed: int) -> Data:
    """The data with one pool instead of all training images."""
    labels = data.train.labels
    if kind.endswith(RANKED):
        places = imbalanced(labels, int(np.bincount(labels).max()), seed)
    else:
        number = OF_POOL if kind == POOLS[0] else 3 * int(np.bincount(labels).max()) // 4
        places = np.sort(of_each_class(labels, number, np.random.default_rng(seed)))
    return data._replace(train=Images(data.train.x[places], labels[places]))


def area(labels: Sequence[int], accuracy: Sequence[float]) -> float:
    """The mean accuracy over the logarithm of the number of labels."""
    logs = np.log2(labels)
    return float(trapezoid(accuracy, logs) / (logs[-1] - logs[0]))


def asked(method: str, pool: Pool, budget: int, labels: NDArray[np.int64]) -> list[int]:
    """The places of the next images."""
    if method == BALANCED:
        rng = np.random.default_rng([pool.seed, len(pool.labelled)])
        counts = np.bincount(labels[list(pool.labelled)], minlength=pool.logits.shape[1])
        left = rng.permutation(np.flatnonzero(pool.free)).tolist()
        picks = []
        for _ in range(budget):
            place = min(left, key=lambda one: counts[labels[one]])
            counts[labels[place]] += 1
            left.remove(place)
            picks.append(place)
        return picks
    if method == "margin":
        return uncertain(pool, budget)
    at_random = choose(*given(pool), budget // DRAWN, pool.seed, "random")
    if method != COMMAND:
        return choose(*given(pool), budget, pool.seed, method)
    beside = pool.after(at_random)
    return choose(*given(beside), budget - len(at_random), pool.seed) + at_random


def given(pool: Pool) -> tuple[Any, Any, Sequence[int]]:
    return pool.features, pool.logits, pool.labelled


def rounds(data: Data, method: str, seed: int) -> dict[str, Any]:
    """The record of a method on a pool."""
    heads, train, test = data
    zero_shot = heads.answers(CANDIDATES[0], (train.x, torch.tensor([])), train.x).numpy()
    projected = heads.inputs("ZeroshotCLIP", train.x)
    pool = Pool(normalize(projected).numpy(), zero_shot, (), seed)
    record: dict[str, Any] = defaultdict(list)
    random: list[int] = []
    points = [point for point in POINTS if point * len(heads.names) <= len(train.labels) / 2]
    for point in points:
        budget = int(point * len(heads.names)) - len(pool.labelled)
        began = time.process_time()
        picks = asked(method, pool, budget, train.labels)
        record["seconds"].append(time.process_time() - began)
        random += picks[budget - budget // DRAWN :]
        pool = pool.after(picks)
        known = list(pool.labelled)
        y = torch.from_numpy(train.labels[known])
        seen = train.x[known], y
        pool = Pool(pool.features, heads.answers(HEAD, seen, train.x).numpy(), known, seed)
        answers = heads.answers(HEAD, seen, test.x).argmax(dim=1).numpy()
        record["SSText"].append(percent(answers == test.labels))
        rows = heads.inputs("ZeroshotCLIP", test.x).numpy()
        record["logistic"].append(percent(logistic(projected[known], y, rows) == test.labels))
        record["classes"].append(len(set(y.tolist())))
    if method == COMMAND:
        flags = np.isin(known, random)
        record |= {name: estimated(data, known, seed, mask) for name, mask in masks(flags)}
    return {"labels": [int(point * len(heads.names)) for point in points], **record}


def logistic(x: Tensor, y: Tensor, rows: NDArray[Any]) -> NDArray[np.int64]:
    """(rows,): the classes by a logistic regression."""
    if len(y.unique()) == 1:
        return np.full(len(rows), int(y[0]))
    return LogisticRegression(C=0.1, max_iter=500).fit(x.numpy(), y.numpy()).predict(rows)


def masks(flags: NDArray[np.bool_]) -> Iterator[tuple[str, NDArray[np.bool_] | None]]:
    yield "estimate of random", flags
    yield "estimate of all", None


def estimated(
    data: Data, known: list[int], seed: int, mask: NDArray[np.bool_] | None
) -> dict[str, float]:
    """What a fit says of its accuracy, from images in a mask or from all, and the truth; nothing if
    there are too few in the mask.
    """
    decision, truth = fitted(data, known, seed, mask)
    at = decision.estimates.get("folder")
    if at is None:
        return {}
    return {"estimate": at.accuracy, "low": at.low, "high": at.high, "truth": truth}


def fitted(
    data: Data, known: list[int], seed: int, mask: NDArray[np.bool_] | None
) -> tuple[Decision, float]:
    """A fit, and its accuracy for classes as frequent as in the pool."""
    heads, train, test = data
    y = torch.from_numpy(train.labels[known])
    names = [heads.names[label] for label in y.unique().tolist()]
    of_names = Heads(PromptedClassifier.zero_shot("small", names, clip=heads.clip))
    numbers = torch.searchsorted(y.unique(), y)
    examples = Examples(train.x[known], numbers, np.arange(len(known)), names, mask)
    candidates = [one for one in CANDIDATES if one.method in OF_FIT]
    request = FitRequest(Path("images"), Path("model"), seed=seed)
    decision, _ = decided(of_names, examples, request, candidates)
    answers = logits_of(of_names, decision, examples, test.x).argmax(axis=1)
    correct = y.unique().numpy()[answers] == test.labels
    weights = np.bincount(train.labels)[test.labels]  # the test has equally many of each class
    return decision, 100 * float(np.average(correct, weights=weights))


def tables(records: list[dict[str, Any]]) -> None:
    """Print what the records say."""
    by_cell = {(one["pool"], one["seed"], one["method"]): one for one in records}
    seeds = sorted({seed for _, seed, method in by_cell if method == "random"})
    kinds = sorted({kind for kind, _, _ in by_cell}, key=(*POOLS, *REAL).index)
    for learner in LEARNERS:
        print(f"\n{learner}: area, difference to random\n\n| method | {' | '.join(kinds)} |")
        for method in ALL:
            cells = [difference(by_cell, kind, method, seeds, learner) for kind in kinds]
            print(f"| {method} | {' | '.join(cells)} |")
    for kind, method in product(kinds, ("random", COMMAND, BALANCED)):
        labels, accuracies = accuracies_of(by_cell, kind, method, seeds, "SSText")
        means = " | ".join(f"{mean:.1f}" for mean in accuracies.mean(axis=0))
        print(f"| {kind} | {method} | {labels} | {means} |")
    for method in ALL:
        if method != "random":
            print_bars(by_cell, kinds, method, seeds)
    for kind, name in product(kinds, ("estimate of random", "estimate of all")):
        own = [one[name] for one in records if one["pool"] == kind and one.get(name)]
        if not own:
            continue
        errors = np.array([one["estimate"] - one["truth"] for one in own])
        inside = sum(one["low"] <= one["truth"] <= one["high"] for one in own)
        numbers = f"{errors.mean():+.1f} | {errors.std():.1f} | {inside} of {len(own)}"
        print(f"| {kind} | {name} | {numbers} |")


def accuracies_of(
    by_cell: dict[Any, Any], kind: str, method: str, seeds: Sequence[int], learner: str
) -> tuple[list[int], NDArray[Any]]:
    """The numbers of labels that all pools have, and the accuracies (pools, numbers)."""
    own = [by_cell[kind, seed, method] for seed in seeds if (kind, seed, method) in by_cell]
    if not own:
        return [], np.empty((1, 0))
    shortest = min(len(one["labels"]) for one in own)  # small pools have fewer rounds
    return own[0]["labels"][:shortest], np.array([one[learner][:shortest] for one in own])


def print_bars(
    by_cell: dict[Any, Any], kinds: Sequence[str], method: str, seeds: Sequence[int]
) -> None:
    """Print where a method is below random draws by more than one standard error, by how many
    standard errors its mean up to 4 labels for each class is above, and what it saves.
    """
    lowest = []
    for kind, learner in product(kinds, LEARNERS):
        labels, of_random = accuracies_of(by_cell, kind, "random", seeds, learner)
        _, of_method = accuracies_of(by_cell, kind, method, seeds, learner)
        if of_method.shape != of_random.shape:
            continue
        differences = of_method - of_random
        lowest += list(differences.mean(axis=0)[in_errors(differences) < -1])
        first = differences[:, : POINTS.index(4) + 1].mean(axis=1, keepdims=True)
        needed = labels_needed(labels, of_method.mean(axis=0), of_random.mean(axis=0)[-1])
        print(f"{method}, {kind}, {learner}: {in_errors(first)[0]:+.1f} standard errors")
        print(f"{needed:.0f} labels for the accuracy of {labels[-1]} at random")
    print(f"{method}: below random in {len(lowest)} cells, by {min(lowest, default=0):.1f} at most")


def in_errors(differences: NDArray[Any]) -> NDArray[Any]:
    """The means over pools of (pools, cells) in units of their standard errors."""
    return differences.mean(axis=0) / sem(differences)


def labels_needed(labels: Sequence[int], accuracies: NDArray[Any], accuracy: float) -> float:
    """How many labels reach an accuracy, interpolated in the logarithm of their number; infinity if
    none do.
    """
    if accuracies[0] >= accuracy:
        return labels[0]
    reached = np.flatnonzero(accuracies >= accuracy)
    if not len(reached):
        return float("inf")
    place = reached[0]
    share = (accuracy - accuracies[place - 1]) / (accuracies[place] - accuracies[place - 1])
    return float(labels[place - 1] * (labels[place] / labels[place - 1]) ** share)


def difference(
    by_cell: dict[Any, Any], kind: str, method: str, seeds: Sequence[int], learner: str
) -> str:
    """The mean of the paired differences to random, and its standard error."""
    pairs = [
        [by_cell[kind, seed, name] for name in (method, "random")]
        for seed in seeds
        if {(kind, seed, method), (kind, seed, "random")} <= by_cell.keys()
    ]
    areas = np.array([[area(one["labels"], one[learner]) for one in pair] for pair in pairs])
    if len(areas) < 2:
        return "-"
    if method == "random":
        return f"{areas[:, 0].mean():.1f}"
    differences = areas[:, 0] - areas[:, 1]
    return f"{differences.mean():+.1f} ({sem(differences):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of labelling.jsonl")
    text = "folder of the datasets; of real ones, the output folder of benchmarks.real"
    add("--root", type=Path, default=Path("data"), help=text)
    add("--pools", type=int, default=10)
    add("--only", choices=(*POOLS, *REAL), nargs="+", default=POOLS)
    add("--methods", choices=ALL, nargs="+", default=ALL)
    add("--table", action="store_true", help="print what the records say, and run nothing")
    args = parser.parse_args()
    file = args.output / "labelling.jsonl"
    records = read_records(file)
    if args.table:
        tables(records)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    done = {(record["pool"], record["seed"], record["method"]) for record in records}
    data = {kind: data_of(args.root, kind) for kind in args.only}
    for seed, kind, method in product(range(1, args.pools + 1), args.only, args.methods):
        if (kind, seed, method) not in done:
            record = rounds(drawn(data[kind], kind, seed), method, seed)
            add_record(file, {"pool": kind, "seed": seed, "method": method, **record})
            print(f"{kind} {seed} {method}: {sum(record['seconds']):.1f} s", flush=True)


if __name__ == "__main__":
    main()
