"""What images without labels add to a fit: `python benchmarks/unlabelled.py --output DIR`.

Fits with 1 to 8 labelled images of each class, with `--pool` and without it, and the small CLIP. A
line of unlabelled.jsonl in DIR has both fits of a draw, so that the same command resumes.
clusters.jsonl has the clusters that are shown if classes have no label, and classes.jsonl fits of
which half of the classes have no image. `--table` prints the tables of docs/labelling.md from them.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "toolbox")]

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.fits import (
    HEADS,
    Data,
    Images,
    Record,
    contained,
    dataset,
    decided,
    estimate_of,
    measure_each,
    of_each_class,
    parser_of_sets,
    percent,
    read_records,
    small_heads,
    tested,
)
from benchmarks.labelling import POOLS, TEST, Landscapes, data_of
from benchmarks.near_copies import features, images_of
from benchmarks.real.images import GARMENTS, only, read_idx
from datasets.small_world import SmallObjects
from fit.candidates import POOLED
from fit.heads import transfers
from fit.pooled import Neighbourhood, unexplained

EUROSAT = POOLS[0]
LANDSCAPES = POOLS[2]
OBJECTS = "objects"
GARMENTS_SET = "Fashion-MNIST"
SETS = EUROSAT, LANDSCAPES, OBJECTS, GARMENTS_SET
SHOTS = 1, 2, 4, 8
POOL = 1000  # images without labels
LABELLED = 16  # images of each class that has labels, if some have none
OF_HALF = 2, 8  # images of a class, if half of the classes have none
NEW = 2  # classes without a label
TRAIN = 200  # images of each class, of which the others are drawn


class Objects(SmallObjects):
    """SmallObjects with more training images."""

    dataset_dir = "unlabelled_objects"
    per_class = Landscapes.per_class


def objects(root: Path) -> Data:
    images = dataset(Objects, root)
    heads = small_heads(images.classnames)
    train = images_of(heads, images.train_x, TRAIN)
    return Data(heads, train, images_of(heads, images.test, TEST))


def garments(sources: tuple[Path, ...]) -> Data:
    """Fashion-MNIST, from its four files."""
    heads = small_heads(GARMENTS)
    parts = []
    for prefix, number in (("train", TRAIN), ("t10k", TEST)):
        pixels, labels = (
            read_idx(only(sources, f"{prefix}-{kind}-idx*-ubyte.gz"))
            for kind in ("images", "labels")
        )
        places = of_each_class(labels, number, np.random.default_rng(0))
        images = [Image.fromarray(pixels[place]).convert("RGB") for place in places]
        parts.append(Images(features(heads, images), labels[places].astype(np.int64)))
    return Data(heads, *parts)


@cache
def loaded(name: str, root: Path, sources: tuple[Path, ...]) -> Data:
    if name == OBJECTS:
        return objects(root)
    if name == GARMENTS_SET:
        return garments(sources)
    return data_of(root, name)


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
    for name, pool in (("without", None), ("with", others.x)):
        data.heads.pool = pool
        more = [] if pool is None else POOLED
        decision, record[f"seconds {name}"] = decided(data.heads, examples, seed, [*HEADS, *more])
        record[name] = percent(tested(decision, examples, data))
    record["learned"] = any(one.pool for one, _ in decision.chosen)
    return record | estimate_of(decision)


def clustered(data: Data, new: int, seed: int) -> Record:
    """The clusters that are shown if so many classes have no label: their number, that of clusters
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
    """The places of the images of the pool that are like none of so many classes, by clusters."""
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


def table_of_halves(records: list[Record]) -> None:
    for name, shots in product(SETS, OF_HALF):
        own = [one for one in records if one["set"] == name and one["shots"] == shots]
        if own:
            means = [np.mean([one[key] for one in own], axis=0) for key in ("zero-shot", "fit")]
            numbers = ", ".join(
                f"{before:.1f} -> {after:.1f}" for before, after in zip(*means, strict=True)
            )
            print(f"{name}, {shots} images of half of the classes: {numbers}")


def table_of_clusters(records: list[Record]) -> None:
    for name, new in product(SETS, (0, NEW)):
        own = [one for one in records if one["set"] == name and one["new"] == new]
        numbers = [sum(one[key] for one in own) for key in ("clusters", "right", "classes")]
        print(name, f"{new} classes without labels, {len(own)} pools: {numbers}")


def table(records: list[Record]) -> None:
    """Print what the records say."""
    cells = defaultdict(list)
    for record in records:
        cells[record["set"], record["shots"]].append(record)
    gains = {place: mean_gain(cell) for place, cell in cells.items()}
    print("| images a class | " + " | ".join(SETS) + " |")
    for shots in SHOTS:
        row = [row_of(cells[name, shots]) for name in SETS]
        print(f"| {shots} | {' | '.join(row)} |")
    least = min(record["with"] - record["without"] for record in records)
    print(f"{len(records)} draws: mean gain {mean_gain(records):+.2f}, worst {least:+.1f}")
    worst = min(gains, key=gains.__getitem__)
    print(f"worst cell: {worst}, {gains[worst]:+.2f}")
    inside = contained(records, "with")
    print(f"intervals that contain the truth: {sum(inside)} of {len(inside)}")


def mean_gain(cell: list[Record]) -> float:
    return float(np.mean([record["with"] - record["without"] for record in cell]))


def row_of(cell: list[Record]) -> str:
    if not cell:
        return "-"
    without = np.mean([record["without"] for record in cell])
    learned = sum(record["learned"] for record in cell)
    return f"{without:.1f}, {mean_gain(cell):+.1f} ({learned} of {len(cell)})"


Measure = Callable[[Data, int, int], Record]
PARTS: dict[str, tuple[str, tuple[int, ...], Measure]] = {
    "unlabelled": ("shots", SHOTS, compared),
    "clusters": ("new", (0, NEW), clustered),
    "classes": ("shots", OF_HALF, half),
}


def main() -> None:
    parser = parser_of_sets(__doc__)
    text = "folders with Fashion-MNIST's files"
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help=text)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--only", choices=SETS, nargs="+", default=SETS)
    args = parser.parse_args()
    if args.table:
        table(read_records(args.output / "unlabelled.jsonl"))
        table_of_clusters(read_records(args.output / "clusters.jsonl"))
        table_of_halves(read_records(args.output / "classes.jsonl"))
        return

    def measured(measure: Measure, place: Record) -> Record:
        name, *numbers = place.values()
        return measure(loaded(name, args.root, tuple(args.sources)), *numbers)

    for part, (key, numbers, measure) in PARTS.items():
        places = [
            {"set": name, key: number, "seed": seed}
            for seed, name, number in product(range(1, args.draws + 1), args.only, numbers)
        ]
        measure_each(args.output / f"{part}.jsonl", places, partial(measured, measure))


if __name__ == "__main__":
    main()
