"""What images without labels add to a fit: `python benchmarks/unlabelled.py --output DIR`.

Fits with 1 to 8 labelled images of each class, with `--pool` and without it, and the small CLIP. A
line of unlabelled.jsonl in DIR has both fits of a draw, so that the same command resumes.
clusters.jsonl has the clusters that are shown if classes have no label, and classes.jsonl fits of
which half of the classes have no image. `--table` prints the tables of docs/labelling.md from them.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

# The project instead of benchmarks/, so that its packages are found first
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame

from benchmarks.fits import (
    HEADS,
    RESUMES,
    Data,
    Images,
    Record,
    contained,
    decided,
    estimate_of,
    grid,
    markdown,
    of_each_class,
    parser_of_sets,
    percent,
    run,
    tested,
)
from benchmarks.sets import EUROSAT, FASHION, LANDSCAPES, OBJECTS, data_of
from fit.candidates import POOLED
from fit.heads import transfers
from fit.pooled import Neighbourhood, unexplained
from runs.session import run_command

SETS = EUROSAT, LANDSCAPES, OBJECTS, FASHION
SHOTS = 1, 2, 4, 8
POOL = 1000  # images without labels
LABELLED = 16  # images of each class that has labels, if some have none
OF_HALF = 2, 8  # images of a class, if half of the classes have none
NEW = 2  # classes without a label


def split(data: Data, number: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Images]:
    """The places of so many images of each class, and POOL other images."""
    labels = data.train.labels
    places = of_each_class(labels, number, rng)
    others = rng.permutation(np.setdiff1d(np.arange(len(labels)), places))[:POOL]
    return places, data.train.part(others)


def compared(data: Data, shots: int, seed: int) -> Record:
    """The accuracy in percent without the pool and with it, and what the second fit says."""
    places, others = split(data, shots, np.random.default_rng([seed, shots]))
    examples = data.train.part(places).examples(data.heads.names)
    record: Record = {"pool": len(others.labels)}
    data.heads.__dict__.pop("unlabelled", None)  # of an earlier draw
    for name, pool, more in (("without", None, ()), ("with", others.x, POOLED)):
        data.heads.pool = pool
        decision, record[f"seconds {name}"] = decided(data.heads, examples, seed, [*HEADS, *more])
        record[name] = percent(tested(decision, examples, data))
    record["learned"] = any(one.pool for one, _ in decision.chosen)
    return record | estimate_of(decision)


def clustered(data: Data, new: int, seed: int) -> Record:
    """The clusters that are shown if `new` classes have no label: their number, that of clusters
    which are mostly of such classes, and the number of the classes of these.
    """
    rng = np.random.default_rng([seed, new])
    places, pool = split(data, LABELLED, rng)
    unknown = rng.permutation(data.train.labels.max() + 1)[:new]
    known = data.train.part(places[~np.isin(data.train.labels[places], unknown)])
    found = [pool.labels[one] for one in clusters_of(known, pool, len(data.heads.names) - new)]
    of_unknown = [one for one in found if np.isin(one, unknown).mean() >= 0.5]
    of_classes = {int(np.bincount(one).argmax()) for one in of_unknown}
    return {"clusters": len(found), "right": len(of_unknown), "classes": len(of_classes)}


def clusters_of(labelled: Images, pool: Images, classes: int) -> Iterator[list[int]]:
    """The clusters of the pool that are like none of the `classes` known classes, as places."""
    graph = Neighbourhood(pool.x)
    whitened = graph.whitened(labelled.x).numpy()
    return unexplained(whitened, graph.images.numpy(), classes, 1)


def half(data: Data, shots: int, seed: int) -> Record:
    """The accuracy in percent on the classes with images and on those without, by zero-shot CLIP
    and by a fit of images of half of the classes.
    """
    heads = data.heads
    heads.pool = None
    rng = np.random.default_rng([seed, shots])
    places = of_each_class(data.train.labels, shots, rng)
    classes = rng.permutation(data.train.labels.max() + 1)[: len(heads.names) // 2]
    places = places[np.isin(data.train.labels[places], classes)]
    examples = data.train.part(places).examples(heads.names)
    candidates = [one for one in HEADS if transfers(one.method)]
    decision, _ = decided(heads, examples, seed, candidates)
    by_names = heads.answers(HEADS[0], examples.seen, data.test.x).argmax(dim=1).numpy()
    return {
        "chosen": decision.name,
        "zero-shot": by_half(by_names == data.test.labels, data, classes),
        "fit": by_half(tested(decision, examples, data), data, classes),
    }


def by_half(correct: NDArray[np.bool_], data: Data, classes: NDArray[np.int64]) -> list[float]:
    """The accuracy in percent on the test images of these classes, and on the others."""
    inside = np.isin(data.test.labels, classes)
    return [percent(correct[inside]), percent(correct[~inside])]


def table(records: DataFrame) -> Iterator[str]:
    """Accuracies without the pool, gains with it, and how many fits use it."""
    records["gain"] = records["with"] - records["without"]
    cells = records.groupby(["shots", "set"])
    means = cells[["without", "gain"]].mean()
    texts = means["without"].map("{:.1f}, ".format) + means["gain"].map("{:+.1f} (".format)
    texts += cells["learned"].sum().astype(str) + " of " + cells.size().astype(str) + ")"
    yield markdown(texts.unstack().reindex(columns=SETS).reset_index())
    gains = records["gain"]
    yield f"{len(records)} draws: mean gain {gains.mean():+.2f}, worst {gains.min():+.1f}"
    shots, name = means["gain"].idxmin()
    yield f"worst cell: {name}, {shots} images, {means['gain'].min():+.2f}"
    inside = contained(records, "with")
    yield f"intervals that contain the truth: {sum(inside)} of {len(inside)}"


def table_of_clusters(records: DataFrame) -> Iterator[str]:
    """Sums over pools."""
    sums = records.groupby(["set", "new"])[["clusters", "right", "classes"]].sum()
    yield markdown(sums.reset_index())


def table_of_halves(records: DataFrame) -> Iterator[str]:
    """Means over draws, on classes with images and on those without."""
    columns = {}
    for name in ("zero-shot", "fit"):
        columns[f"{name}, with images"] = records[name].str[0]
        columns[f"{name}, without"] = records[name].str[1]
    means = DataFrame(columns).groupby([records["set"], records["shots"]]).mean()
    yield markdown(means.map("{:.1f}".format).reset_index())


def cell_of(measure: Callable[..., Record]) -> Callable[..., Record]:
    """The cell of a measure on the data of a set."""

    def cell(args: Namespace, set: str, **place: int) -> Record:
        return measure(data_of(set, args.root, tuple(args.sources)), **place)

    return cell


def main() -> None:
    parser = parser_of_sets(__doc__)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--only", choices=SETS, nargs="+", default=SETS)
    args = parser.parse_args()
    draws = range(1, args.draws + 1)
    shots = grid(seed=draws, set=args.only, shots=SHOTS)
    run(args, "unlabelled.jsonl", shots, cell_of(compared), table)
    new = grid(seed=draws, set=args.only, new=(0, NEW))
    run(args, "clusters.jsonl", new, cell_of(clustered), table_of_clusters)
    of_half = grid(seed=draws, set=args.only, shots=OF_HALF)
    run(args, "classes.jsonl", of_half, cell_of(half), table_of_halves)


if __name__ == "__main__":
    run_command(main, RESUMES)
