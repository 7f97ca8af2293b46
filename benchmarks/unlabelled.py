"""What images without labels add to a fit: `python benchmarks/unlabelled.py --output DIR`.

Fits with 1 to 8 labelled images of each class, with `--pool` and without it, and the small CLIP. A
line of unlabelled.jsonl in DIR has both fits of a draw, so that the same command resumes.
clusters.jsonl has the clusters that are shown if classes have no label, and classes.jsonl fits of
which half of the classes have no image. `--table` prints the tables of docs/labelling.md from them.
"""

import argparse
import sys
from collections import defaultdict
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
from PIL import Image

import datasets
from benchmarks.fits import HEADS, add_record, decided, of_each_class, percent, read_records
from benchmarks.labelling import POOLS, TEST, Data, Images, Landscapes, data_of, images_of
from benchmarks.near_copies import features, logits_of
from benchmarks.real.images import GARMENTS, only, read_idx
from datasets.small_world import SmallObjects
from fit.candidates import POOLED
from fit.heads import Heads, transfers
from fit.pooled import Neighbourhood, unexplained
from fit.request import FitRequest
from fit.trials import Examples
from inference.classifier import PromptedClassifier

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
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.DATASET.ROOT = str(root)
    dataset = Objects(cfg)
    names = [name.replace("_", " ") for name in dataset.classnames]
    heads = Heads(PromptedClassifier.zero_shot("small", names))
    train = images_of(heads, dataset.train_x, TRAIN)
    return Data(heads, train, images_of(heads, dataset.test, TEST))


def garments(sources: list[Path]) -> Data:
    """Fashion-MNIST, from its four files."""
    heads = Heads(PromptedClassifier.zero_shot("small", list(GARMENTS)))
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


def loaded(name: str, root: Path, sources: list[Path]) -> Data:
    if name == OBJECTS:
        return objects(root)
    if name == GARMENTS_SET:
        return garments(sources)
    return data_of(root, name)


def compared(data: Data, shots: int, seed: int) -> dict[str, Any]:
    """The accuracy in percent without the pool and with it, and what the second fit says."""
    heads = data.heads
    labels = data.train.labels
    rng = np.random.default_rng([seed, shots])
    places = of_each_class(labels, shots, rng)
    others = rng.permutation(np.setdiff1d(np.arange(len(labels)), places))[:POOL]
    y = torch.from_numpy(labels[places])
    examples = Examples(data.train.x[places], y, np.arange(len(places)), heads.names)
    request = FitRequest(Path("images"), Path("model"), seed=seed)
    record: dict[str, Any] = {"pool": len(others)}
    heads.__dict__.pop("unlabelled", None)  # of an earlier draw
    for name, pool in (("without", None), ("with", data.train.x[others])):
        heads.pool = pool
        candidates = HEADS if pool is None else [*HEADS, *POOLED]
        decision, seconds = decided(heads, examples, request, candidates)
        answers = logits_of(heads, decision, examples, data.test.x).argmax(axis=1)
        record[name] = percent(answers == data.test.labels)
        record[f"seconds {name}"] = seconds
    record["learned"] = any(candidate.pool for candidate, _ in decision.chosen)
    at = decision.estimates.get("folder")
    return record | ({"estimate": at.accuracy, "low": at.low, "high": at.high} if at else {})


def clustered(data: Data, new: int, seed: int) -> dict[str, Any]:
    """The clusters that are shown if so many classes have no label: their number, that of clusters
    which are mostly of such classes, and the number of the classes of these.
    """
    labels = data.train.labels
    rng = np.random.default_rng([seed, new])
    places = of_each_class(labels, LABELLED, rng)
    others = rng.permutation(np.setdiff1d(np.arange(len(labels)), places))[:POOL]
    unknown = rng.permutation(labels.max() + 1)[:new]
    places = places[~np.isin(labels[places], unknown)]
    known = Neighbourhood(data.train.x[others])
    labelled = known.whitened(data.train.x[places]).numpy()
    classes = len(data.heads.names) - new
    found = [labels[others[one]] for one in unexplained(labelled, known.images.numpy(), classes, 1)]
    of_unknown = [one for one in found if np.isin(one, unknown).mean() >= 0.5]
    of_classes = {int(np.bincount(one).argmax()) for one in of_unknown}
    return {"clusters": len(found), "right": len(of_unknown), "classes": len(of_classes)}


def half(data: Data, shots: int, seed: int) -> dict[str, Any]:
    """The accuracy in percent on the classes with images and on those without, by zero-shot CLIP
    and by a fit of images of half of the classes.
    """
    heads = data.heads
    heads.pool = None
    labels = data.train.labels
    rng = np.random.default_rng([seed, shots])
    places = of_each_class(labels, shots, rng)
    classes = rng.permutation(labels.max() + 1)[: len(heads.names) // 2]
    places = places[np.isin(labels[places], classes)]
    seen = data.train.x[places], torch.from_numpy(labels[places])
    examples = Examples(*seen, np.arange(len(places)), heads.names)
    request = FitRequest(Path("images"), Path("model"), seed=seed)
    candidates = [one for one in HEADS if transfers(one.method)]
    decision, _ = decided(heads, examples, request, candidates)
    of_fit = logits_of(heads, decision, examples, data.test.x).argmax(axis=1)
    by_names = heads.answers(HEADS[0], seen, data.test.x).argmax(dim=1).numpy()
    with_images = np.isin(data.test.labels, classes)
    record: dict[str, Any] = {"chosen": decision.name}
    for name, answers in (("zero-shot", by_names), ("fit", of_fit)):
        correct = answers == data.test.labels
        record[name] = [percent(correct[with_images]), percent(correct[~with_images])]
    return record


def table_of_halves(records: list[dict[str, Any]]) -> None:
    for name, shots in product(SETS, OF_HALF):
        own = [one for one in records if one["set"] == name and one["shots"] == shots]
        if own:
            means = [np.mean([one[key] for one in own], axis=0) for key in ("zero-shot", "fit")]
            numbers = ", ".join(
                f"{before:.1f} -> {after:.1f}" for before, after in zip(*means, strict=True)
            )
            print(f"{name}, {shots} images of half of the classes: {numbers}")


def table_of_clusters(records: list[dict[str, Any]]) -> None:
    for name, new in product(SETS, (0, NEW)):
        own = [one for one in records if one["set"] == name and one["new"] == new]
        numbers = [sum(one[key] for one in own) for key in ("clusters", "right", "classes")]
        print(name, f"{new} classes without labels, {len(own)} pools: {numbers}")


def table(records: list[dict[str, Any]]) -> None:
    """Print what the records say."""
    cells = defaultdict(list)
    for record in records:
        cells[record["set"], record["shots"]].append(record)
    gains = {place: mean_gain(cell) for place, cell in cells.items()}
    print("| images a class | " + " | ".join(SETS) + " |")
    for shots in SHOTS:
        row = [row_of(cells[name, shots]) for name in SETS]
        print(f"| {shots} | {' | '.join(row)} |")
    differences = [record["with"] - record["without"] for record in records]
    mean = np.mean(differences)
    print(f"{len(records)} draws: mean gain {mean:+.2f}, worst {min(differences):+.1f}")
    worst = min(gains, key=lambda place: gains[place])
    print(f"worst cell: {worst}, {gains[worst]:+.2f}")
    inside = [one["low"] <= one["with"] <= one["high"] for one in records if "low" in one]
    print(f"intervals that contain the truth: {sum(inside)} of {len(inside)}")


def mean_gain(cell: list[dict[str, Any]]) -> float:
    return float(np.mean([record["with"] - record["without"] for record in cell]))


def row_of(cell: list[dict[str, Any]]) -> str:
    if not cell:
        return "-"
    without = np.mean([record["without"] for record in cell])
    learned = sum(record["learned"] for record in cell)
    return f"{without:.1f}, {mean_gain(cell):+.1f} ({learned} of {len(cell)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of unlabelled.jsonl")
    add("--root", type=Path, default=Path("data"), help="folder of the datasets")
    add("--sources", type=Path, nargs="*", default=[], help="folders with Fashion-MNIST's files")
    add("--draws", type=int, default=5)
    add("--only", choices=SETS, nargs="+", default=SETS)
    add("--table", action="store_true", help="print what the records say, and run nothing")
    args = parser.parse_args()
    file = args.output / "unlabelled.jsonl"
    records = read_records(file)
    of_clusters = args.output / "clusters.jsonl"
    of_classes = args.output / "classes.jsonl"
    if args.table:
        table(records)
        table_of_clusters(read_records(of_clusters))
        table_of_halves(read_records(of_classes))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    data = {name: loaded(name, args.root, args.sources) for name in args.only}
    parts = (
        (file, "shots", SHOTS, compared),
        (of_clusters, "new", (0, NEW), clustered),
        (of_classes, "shots", OF_HALF, half),
    )
    for file, key, numbers, measure in parts:
        done = {(one["set"], one[key], one["seed"]) for one in read_records(file)}
        for seed, name, number in product(range(1, args.draws + 1), args.only, numbers):
            if (name, number, seed) not in done:
                record = measure(data[name], number, seed)
                add_record(file, {"set": name, key: number, "seed": seed, **record})
                print(f"{file.name}: {name} {number} {seed}", flush=True)


if __name__ == "__main__":
    main()
