"""What labels buy: `python benchmarks/labelling.py --output DIR`.

The methods of `measures/labelling.py` ask for labels of pools of EuroSAT, of drawn landscapes, and
of sets of `benchmarks.real`, with the small CLIP. A line of labelling.jsonl in DIR has one method
on one pool, so that the same command resumes; `--table` prints the tables of docs/labelling.md
from them.
"""

import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

# The project instead of benchmarks/, so that its packages are found first
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from numpy.typing import NDArray
from pandas import DataFrame
from scipy.integrate import trapezoid
from sklearn.linear_model import LogisticRegression

from benchmarks.fits import (
    RESUMES,
    Data,
    Record,
    contained,
    decided,
    estimate_of,
    grid,
    logits_of,
    markdown,
    of_each_class,
    parser_of_sets,
    percent,
    run,
)
from benchmarks.sets import EUROSAT, LANDSCAPES, RANKED, data_of
from fit.candidates import CANDIDATES, Candidate
from fit.decision import Decision
from fit.heads import Heads
from fit.labelling import DRAWN
from inference.classifier import PromptedClassifier
from measures.labelling import METHODS, Pool, choose, uncertain
from runs.session import run_command
from trainers.base.prompted import normalize

OF_POOL = 200  # images of each class of EuroSAT; of other sets three quarters
POOLS = EUROSAT, EUROSAT + RANKED, LANDSCAPES
SETS = "digits", "emoji", "fashion_mnist", "openclipart", "stamps", "stamps_fine"
REAL = tuple(name + kind for name in SETS for kind in ("", RANKED))
POINTS = 0.5, 1, 2, 4, 8, 16  # labels for each class
LEARNERS = "SSText", "logistic"
RANDOM = "random"
COMMAND = "the command"  # the default, and the last quarter at random
BALANCED = "balanced by true labels"  # which nobody has
ALL = (*METHODS, "margin", COMMAND, BALANCED)
ESTIMATES = "estimate of random", "estimate of all"
HEAD = Candidate("SSText", {"RULE": "SStext"})
OF_FIT = "ZeroshotCLIP", "SSText", "GDA", "VisionProbe"
CANDIDATES_OF_FIT = [one for one in CANDIDATES if one.method in OF_FIT]


def imbalanced(labels: NDArray[np.int64], largest: int, seed: int) -> NDArray[np.int64]:
    """The places of a pool whose classes, in a random order, have largest // rank images."""
    rng = np.random.default_rng(seed)
    kept = []
    for rank, label in enumerate(rng.permutation(labels.max() + 1), start=1):
        own = np.flatnonzero(labels == label)
        kept.append(rng.permutation(own)[: largest // rank])
    return np.sort(np.concatenate(kept))


def drawn(args: Namespace, pool: str, seed: int) -> Data:
    """The data of a set with one pool instead of all training images."""
    data = data_of(pool.removesuffix(RANKED), args.root, tuple(args.sources))
    labels = data.train.labels
    largest = int(np.bincount(labels).max())
    if pool.endswith(RANKED):
        places = imbalanced(labels, largest, seed)
    else:
        number = OF_POOL if pool == EUROSAT else 3 * largest // 4
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
    if method != COMMAND:
        return chosen(pool, budget, method)
    at_random = chosen(pool, budget // DRAWN, RANDOM)
    return chosen(pool.after(at_random), budget - len(at_random)) + at_random


def chosen(pool: Pool, budget: int, *method: str) -> list[int]:
    return choose(pool.features, pool.logits, pool.labelled, budget, pool.seed, *method)


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


def rounds(data: Data, method: str, budgets: Sequence[int], seed: int) -> Iterator[Pool]:
    """The pool after each round of a method, in which so many images get a label."""
    pool = first_pool(data, seed)
    for budget in budgets:
        picks = asked(method, pool, budget, data.train.labels)
        pool = guessed_again(pool.after(picks), data)
        yield pool


def at_random(pool: Pool, budgets: Sequence[int]) -> NDArray[np.bool_]:
    """(labelled,): the images that COMMAND has drawn at random, the last ones of each round."""
    parts = [np.arange(budget) >= budget - budget // DRAWN for budget in budgets]
    return np.concatenate(parts)[: len(pool.labelled)]


def cell(args: Namespace, pool: str, seed: int, method: str) -> Record:
    """The record of a method on a pool."""
    data = drawn(args, pool, seed)
    numbers = numbers_of_labels(data)
    budgets = np.diff(numbers, prepend=0).tolist()
    record: Record = defaultdict(list, labels=numbers)
    for labelled in rounds(data, method, budgets, seed):
        for name, value in learned(data, labelled.labelled).items():
            record[name].append(value)
    if method == COMMAND:
        for name, mask in zip(ESTIMATES, (at_random(labelled, budgets), None), strict=True):
            record[name] = estimated(data, labelled, mask)
    return record


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
    """The estimate of a fit, and the truth; nothing if there is no estimate."""
    decision, truth = fitted(data, pool, mask)
    found = estimate_of(decision)
    return found | {"truth": truth} if found else {}


def fitted(data: Data, pool: Pool, mask: NDArray[np.bool_] | None) -> tuple[Decision, float]:
    """A fit of the images with labels, and its accuracy for classes as frequent as in the pool.

    Args:
        mask: (labelled,), the images of the estimate; None for all.
    """
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


def table(records: DataFrame) -> Iterator[str]:
    """Areas, means, how far random draws are exceeded, and the errors of estimates."""
    kinds = [kind for kind in (*POOLS, *REAL) if kind in set(records["pool"])]
    for learner in LEARNERS:
        yield f"{learner}: area, difference to random\n\n{markdown(areas(records, learner, kinds))}"
    for kind, method in product(kinds, (RANDOM, COMMAND, BALANCED)):
        means = accuracies(records, kind, method, "SSText").mean()
        texts = [f"{accuracy:.1f} with {labels}" for labels, accuracy in means.items()]
        yield f"{kind}, {method}: {', '.join(texts)}"
    for method in ALL:
        if method != RANDOM:
            yield from leads(records, kinds, method)
    for kind, name in product(kinds, ESTIMATES):
        yield f"{kind}, {name}: {errors_of(records[records['pool'] == kind], name)}"


def areas(records: DataFrame, learner: str, kinds: Sequence[str]) -> DataFrame:
    """A row for each method, a column for each kind of pool: the mean of the paired differences to
    random, and its standard error.
    """
    values = map(area, records["labels"], records[learner])
    every = records.assign(area=list(values)).pivot(
        index=["pool", "seed"], columns="method", values="area"
    )
    every = every.reindex(columns=ALL)
    groups = every.sub(every[RANDOM], axis=0).groupby("pool")
    means = groups.mean().map("{:+.1f}".format)
    errors = groups.sem().map("{:.1f}".format)
    cells = (means + " (" + errors + ")").where(groups.count() > 1, "-")
    area_of_random = every[RANDOM].groupby("pool").mean()
    cells[RANDOM] = area_of_random.map("{:.1f}".format, na_action="ignore").fillna("-")
    return cells.loc[kinds].T.reset_index()


def accuracies(records: DataFrame, kind: str, method: str, learner: str) -> DataFrame:
    """A row for each pool, a column for each number of labels that all of them have."""
    own = records[(records["pool"] == kind) & (records["method"] == method)]
    rows = map(zip, own["labels"], own[learner])
    return DataFrame(map(dict, rows), index=own["seed"]).dropna(axis=1)


def leads(records: DataFrame, kinds: Sequence[str], method: str) -> Iterator[str]:
    """By how many standard errors the mean of a method up to 4 labels for each class is above
    random draws, and where it is below them by more than one.
    """
    lowest = []
    for kind, learner in product(kinds, LEARNERS):
        own = accuracies(records, kind, method, learner)
        differences = own - accuracies(records, kind, RANDOM, learner)
        if differences.empty or differences.isna().any(axis=None):
            continue
        means = differences.iloc[:, : POINTS.index(4) + 1].mean(axis=1)
        yield f"{method}, {kind}, {learner}: {means.mean() / means.sem():+.1f} standard errors"
        cells = differences.mean()
        lowest += cells[cells / differences.sem() < -1].tolist()
    yield f"{method}: below random in {len(lowest)} cells, by {min(lowest, default=0):.1f} at most"


def errors_of(records: DataFrame, name: str) -> str:
    """How far estimates are from the truth."""
    estimates = DataFrame([one for one in records.get(name, ()) if isinstance(one, dict) and one])
    if estimates.empty:
        return "none"
    errors = estimates["estimate"] - estimates["truth"]
    inside = contained(estimates, "truth")
    spread = errors.std(ddof=0)
    return f"{errors.mean():+.1f}, {spread:.1f}; {sum(inside)} of {len(inside)} contain the truth"


def main() -> None:
    parser = parser_of_sets(__doc__)
    parser.add_argument("--pools", type=int, default=10)
    parser.add_argument("--only", choices=(*POOLS, *REAL), nargs="+", default=POOLS)
    parser.add_argument("--methods", choices=ALL, nargs="+", default=ALL)
    args = parser.parse_args()
    places = grid(seed=range(1, args.pools + 1), pool=args.only, method=args.methods)
    run(args, "labelling.jsonl", places, cell, table)


if __name__ == "__main__":
    run_command(main, RESUMES)
