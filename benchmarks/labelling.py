"""What labels buy: `python benchmarks/labelling.py --output DIR`.

The methods of `measures/labelling.py` ask for labels of pools of EuroSAT, of drawn landscapes, and
of sets of `benchmarks.real`, with the small CLIP. A line of labelling.jsonl in DIR has one method
on one pool, so that the same command resumes; `--table` prints the tables of docs/labelling.md
from them.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "toolbox")]

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.stats import sem
from sklearn.linear_model import LogisticRegression

from benchmarks.fits import (
    Data,
    Record,
    contained,
    dataset,
    decided,
    estimate_of,
    logits_of,
    measure_each,
    of_each_class,
    parser_of_sets,
    percent,
    read_records,
    small_heads,
)
from benchmarks.near_copies import eurosat, images_of
from benchmarks.real.data import SMALL, loaded
from datasets.small_world import SmallLand
from fit.candidates import CANDIDATES, Candidate
from fit.decision import Decision
from fit.heads import Heads
from fit.labelling import DRAWN
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
CANDIDATES_OF_FIT = [one for one in CANDIDATES if one.method in OF_FIT]


class Landscapes(SmallLand):
    """SmallLand with more training images."""

    dataset_dir = "labelling_land"
    per_class = {"train": OF_POOL, "val": 1, "test": TEST}


@cache
def data_of(root: Path, kind: str) -> Data:
    if kind in REAL:
        return loaded(kind.removesuffix(RANKED), SMALL, (), root)
    images = dataset(Landscapes, root) if kind == POOLS[2] else eurosat(root)
    heads = small_heads(images.classnames)
    train = images_of(heads, images.train_x, TRAIN)
    return Data(heads, train, images_of(heads, images.test, TEST))


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
    return data._replace(train=data.train.part(places))


def area(labels: Sequence[int], accuracy: Sequence[float]) -> float:
    """The mean accuracy over the logarithm of the number of labels."""
    logs = np.log2(labels)
    return float(trapezoid(accuracy, logs) / (logs[-1] - logs[0]))


def asked(method: str, pool: Pool, budget: int, labels: NDArray[np.int64]) -> list[int]:
    """The places of the next images."""
    if method == BALANCED:
        return balanced(pool, budget, labels)
    if method == "margin":
        return uncertain(pool, budget)
    at_random = choose(*given(pool), budget // DRAWN, pool.seed, "random")
    if method != COMMAND:
        return choose(*given(pool), budget, pool.seed, method)
    beside = pool.after(at_random)
    return choose(*given(beside), budget - len(at_random), pool.seed) + at_random


def balanced(pool: Pool, budget: int, labels: NDArray[np.int64]) -> list[int]:
    """The places of images, of which each class has equally many by their true labels."""
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


def given(pool: Pool) -> tuple[Any, Any, Sequence[int]]:
    return pool.features, pool.logits, pool.labelled


def first_pool(data: Data, seed: int) -> Pool:
    """The training images before one has a label, with the guesses of zero-shot CLIP."""
    x = data.train.x
    guesses = data.heads.answers(CANDIDATES[0], (x, torch.tensor([])), x).numpy()
    features = normalize(data.heads.inputs("ZeroshotCLIP", x)).numpy()
    return Pool(features, guesses, (), seed)


def guessed_again(pool: Pool, data: Data) -> Pool:
    """The pool with the guesses of a head that has learned its labels."""
    seen = data.train.part(pool.labelled).examples(()).seen
    guesses = data.heads.answers(HEAD, seen, data.train.x).numpy()
    return Pool(pool.features, guesses, pool.labelled, pool.seed)


def rounds(data: Data, method: str, seed: int) -> Record:
    """The record of a method on a pool."""
    pool = first_pool(data, seed)
    record: Record = defaultdict(list)
    random: list[int] = []
    for number in numbers_of_labels(data):
        budget = number - len(pool.labelled)
        began = time.process_time()
        picks = asked(method, pool, budget, data.train.labels)
        record["seconds"].append(time.process_time() - began)
        random += picks[budget - budget // DRAWN :]
        pool = guessed_again(pool.after(picks), data)
        record["labels"].append(number)
        for name, value in learned(data, pool.labelled).items():
            record[name].append(value)
    if method == COMMAND:
        record["estimate of random"] = estimated(data, pool, np.isin(pool.labelled, random))
        record["estimate of all"] = estimated(data, pool, None)
    return dict(record)


def numbers_of_labels(data: Data) -> list[int]:
    """After each round."""
    classes = len(data.heads.names)
    points = [point for point in POINTS if point * classes <= len(data.train.labels) / 2]
    return [int(point * classes) for point in points]


def learned(data: Data, known: Sequence[int]) -> dict[str, float]:
    """The accuracies of learners with these labels, and the number of classes that these have."""
    seen = data.train.part(known)
    x, labels = data.test
    answers = data.heads.answers(HEAD, seen.examples(()).seen, x).argmax(dim=1).numpy()
    projected = (data.heads.inputs("ZeroshotCLIP", one).numpy() for one in (seen.x, x))
    return {
        "SSText": percent(answers == labels),
        "logistic": percent(logistic(seen.labels, *projected) == labels),
        "classes": len(set(seen.labels.tolist())),
    }


def logistic(labels: NDArray[np.int64], x: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.int64]:
    """(rows,): the classes by a logistic regression."""
    if len(set(labels.tolist())) == 1:
        return np.full(len(rows), labels[0])
    return LogisticRegression(C=0.1, max_iter=500).fit(x, labels).predict(rows)


def estimated(data: Data, pool: Pool, mask: NDArray[np.bool_] | None) -> dict[str, float]:
    """What a fit says of its accuracy, from images in a mask or from all, and the truth; nothing if
    there are too few in the mask.
    """
    decision, truth = fitted(data, pool, mask)
    found = estimate_of(decision)
    return found | {"truth": truth} if found else {}


def fitted(data: Data, pool: Pool, mask: NDArray[np.bool_] | None) -> tuple[Decision, float]:
    """A fit of the images with labels, and its accuracy for classes as frequent as in the pool."""
    known = data.train.part(pool.labelled)
    classes, numbers = np.unique(known.labels, return_inverse=True)
    names = np.array(data.heads.names)[classes].tolist()
    heads = Heads(PromptedClassifier.zero_shot("small", names, clip=data.heads.clip))
    examples = replace(known._replace(labels=numbers).examples(names), drawn=mask)
    decision, _ = decided(heads, examples, pool.seed, CANDIDATES_OF_FIT)
    answers = classes[logits_of(heads, decision, examples, data.test.x).argmax(axis=1)]
    # The test has equally many of each class
    weights = np.bincount(data.train.labels)[data.test.labels]
    return decision, 100 * float(np.average(answers == data.test.labels, weights=weights))


def tables(records: list[Record]) -> None:
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
        print_means(by_cell, kind, method, seeds)
    for method in ALL:
        if method != "random":
            print_bars(by_cell, kinds, method, seeds)
    for kind, name in product(kinds, ("estimate of random", "estimate of all")):
        own = [one for one in records if one["pool"] == kind and one.get(name)]
        print_errors(f"{kind} | {name}", [one[name] for one in own])


def print_means(by_cell: dict[Any, Any], kind: str, method: str, seeds: Sequence[int]) -> None:
    """Print the mean accuracies of a method."""
    labels, accuracies = accuracies_of(by_cell, kind, method, seeds, "SSText")
    means = " | ".join(f"{mean:.1f}" for mean in accuracies.mean(axis=0))
    print(f"| {kind} | {method} | {labels} | {means} |")


def print_errors(name: str, estimates: list[Record]) -> None:
    """Print how far estimates are from the truth."""
    if not estimates:
        return
    errors = np.array([one["estimate"] - one["truth"] for one in estimates])
    inside = contained(estimates, "truth")
    numbers = f"{errors.mean():+.1f} | {errors.std():.1f} | {sum(inside)} of {len(inside)}"
    print(f"| {name} | {numbers} |")


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
        print(f"{method}, {kind}, {learner}: {lead(differences):+.1f} standard errors")
        needed = labels_needed(labels, of_method.mean(axis=0), of_random.mean(axis=0)[-1])
        print(f"{needed:.0f} labels for the accuracy of {labels[-1]} at random")
    print(f"{method}: below random in {len(lowest)} cells, by {min(lowest, default=0):.1f} at most")


def lead(differences: NDArray[Any]) -> float:
    """The mean of (pools, numbers) up to 4 labels for each class, in its standard errors."""
    means = differences[:, : POINTS.index(4) + 1].mean(axis=1, keepdims=True)
    return float(in_errors(means)[0])


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
    parser = parser_of_sets(__doc__)
    parser.add_argument("--pools", type=int, default=10)
    parser.add_argument("--only", choices=(*POOLS, *REAL), nargs="+", default=POOLS)
    parser.add_argument("--methods", choices=ALL, nargs="+", default=ALL)
    args = parser.parse_args()
    file = args.output / "labelling.jsonl"
    if args.table:
        tables(read_records(file))
        return

    def measured(place: Record) -> Record:
        kind, seed, method = place.values()
        return rounds(drawn(data_of(args.root, kind), kind, seed), method, seed)

    places = [
        {"pool": kind, "seed": seed, "method": method}
        for seed, kind, method in product(range(1, args.pools + 1), args.only, args.methods)
    ]
    measure_each(file, places, measured)


if __name__ == "__main__":
    main()
