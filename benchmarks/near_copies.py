"""Whether the estimate of `tools/fit.py` holds for near-copies: `python benchmarks/near_copies.py
--output DIR`.

Eight images of each class of EuroSAT, drawn by a seed, are saved with near-copies of one kind. The
truth is the accuracy on 600 other images. A line of near_copies.jsonl in DIR has one fit, so that
the same command resumes; `--table` prints the table of docs/own_classes.md from them.
"""

import io
import sys
from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "toolbox")]

import numpy as np
import torch
from dassl.data.datasets import DATASET_REGISTRY
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from benchmarks.fits import (
    Data,
    Images,
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
    promised,
    read_records,
    small_heads,
)
from datasets import copies
from fit import groups
from fit.decision import Decision
from fit.features import Row
from fit.heads import Heads
from fit.rows import Photo
from fit.trials import Examples

# Of each class
IMAGES = 8
TEST = 60
ERRORS = 20, 35, 50  # percent


def saved_again(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cropped by 1 to 3 pixels at each side, 2 to 3% brighter or darker, JPEG of quality 85."""
    left, top, right, bottom = rng.integers(1, 4, 4)
    width, height = image.size
    image = image.crop((left, top, width - right, height - bottom)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    image = ImageEnhance.Brightness(image).enhance(
        1 + rng.choice([-1, 1]) * rng.uniform(0.02, 0.03)
    )
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return Image.open(file).convert("RGB")


def next_frame(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shifted by up to 6 pixels, up to 7% brighter or darker, with noise."""
    x, y = rng.integers(0, 13, 2)
    width, height = image.size
    pixels = np.pad(np.asarray(image, dtype=float), ((6, 6), (6, 6), (0, 0)), mode="reflect")
    pixels = pixels[y : y + height, x : x + width] * rng.uniform(0.93, 1.07)
    pixels += rng.normal(0, 4, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirrored in most cases, and turned by up to 8 degrees."""
    mirror = rng.choice([ImageOps.mirror, ImageOps.flip, lambda same: same], p=[0.5, 0.15, 0.35])
    image = mirror(image)
    width, height = image.size
    pixels = np.pad(np.asarray(image), ((12, 12), (12, 12), (0, 0)), mode="reflect")
    large = Image.fromarray(pixels).rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    return large.crop((12, 12, 12 + width, 12 + height))


KINDS = {"saved again": saved_again, "next frame": next_frame, "turned": turned}
CELLS = [("none", 0), *((kind, number) for number in (2, 4, 9) for kind in KINDS)]


def pictures(paths: list[str]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


@torch.no_grad()
def features(heads: Heads, images: list[Image.Image]) -> Tensor:
    """(images, width)."""
    parts = [images[start : start + 64] for start in range(0, len(images), 64)]
    pixels = (torch.stack([heads.zero_shot.transform(image) for image in part]) for part in parts)
    return torch.cat([heads.tower.image_output(batch).feature.float() for batch in pixels])


class Drawn(NamedTuple):
    """Images with near-copies."""

    images: list[Image.Image]
    labels: Tensor  # (images,)
    source: NDArray[Any]  # (images,): the number of the image that each is a near-copy of


def drawn(items: list[Any], kind: str, number: int, seed: int) -> Drawn:
    """IMAGES of each class, and so many near-copies of each of them."""
    rng = np.random.default_rng([seed, number])
    labels = np.array([item.label for item in items])
    places = of_each_class(labels, IMAGES, rng)
    images = pictures([items[place].impath for place in places])
    source = np.concatenate([np.arange(len(places)), np.arange(len(places)).repeat(number)])
    images += [KINDS[kind](images[place], rng) for place in source[len(places) :]]
    return Drawn(images, torch.from_numpy(labels[places][source]), source)


def examples_of(heads: Heads, found: Drawn, named: bool) -> Examples:
    """The images that a fit learns from. If groups are `named`, as by a folder or a CSV file, it
    looks for no near-copies.
    """
    x = features(heads, found.images)
    photos = []
    rows = {}
    for place, label in enumerate(found.labels):
        photo = Photo(str(place), heads.names[label])
        signature = copies.signature(found.images[place])
        if named:
            photo = replace(photo, group=str(found.source[place]))
            signature = np.zeros(copies.SHAPE, dtype=np.int8)
        rows[photo.path] = Row("", signature, copies.Taken(), x[place])
        photos.append(photo)
    scenes, _ = groups.find(photos, rows)
    return Examples(x, found.labels, copies.numbered(scenes), heads.names)


def fitted(data: Data, examples: Examples, seed: int) -> Record:
    """The record of one fit, with a test."""
    decision, seconds = decided(data.heads, examples, seed)
    logits = logits_of(data.heads, decision, examples, data.test.x)
    labels = data.test.labels
    record: Record = {"seconds": seconds, "scenes": len(np.unique(examples.scenes))}
    record["truth"] = percent(logits.argmax(axis=1) == labels)
    record |= {"ungrouped": decision.ungrouped, "chosen": decision.name}
    if decision.certainty is None:
        return record
    return record | estimate_of(decision) | certainty_of(decision, logits, labels)


def certainty_of(decision: Decision, logits: NDArray[Any], labels: NDArray[Any]) -> Record:
    """How sets, confidences and promises of a fit hold on a test, in percent."""
    sure: Any = decision.certainty
    trials: Any = decision.trials
    sets = sure.sets.apply(logits, 0.9)[np.arange(len(logits)), labels]
    probabilities = np.exp(sure.temperature.apply(logits))
    confidence = probabilities.max(axis=1) / probabilities.sum(axis=1)
    wrong = logits.argmax(axis=1) != labels
    answered = promised(decision, logits, ERRORS, trials.sample)
    return {
        "sets": percent(sets),
        "confidence": 100 * float(confidence.mean()),
        "errors": {error: percent(wrong[given]) for error, given in answered},
    }


def table(records: list[Record]) -> None:
    """Print what the records say."""
    by_cell = defaultdict(list)
    for record in records:
        by_cell[record["copies"], record["kind"]].append(record)
    columns = ["near-copies of each image", "groups of 80", "truth", "estimate", "contained"]
    print(f"| {' | '.join([*columns, 'without groups', 'sets for 90%'])} |")
    print("| --- " * 7 + "|")
    for (number, kind), cell in sorted(by_cell.items()):
        print(row_of(f"{number}, {kind}" if number else "none", cell))
    print_summary(records)


def print_summary(records: list[Record]) -> None:
    """The summary of all fits."""
    differences = np.array([one["estimate"] - one["truth"] for one in records])
    inside = np.mean(contained(records, "truth"))
    print(f"{len(records)} fits: {100 * inside:.1f}% of the intervals contain the truth")
    print(
        f"estimate - truth: mean {differences.mean():+.2f}, standard deviation "
        f"{differences.std():.2f}"
    )
    print(f"sets for 90%: {np.mean([one['sets'] for one in records]):.1f}%")
    confidence = np.mean([one["confidence"] - one["truth"] for one in records])
    print(f"confidence - truth: {confidence:+.1f}")
    for error in map(str, ERRORS):
        wrong = [one["errors"][error] for one in records if error in one["errors"]]
        over = sum(value > float(error) for value in wrong)
        kept = f"{len(wrong)} fits promise it, {over} have more"
        print(f"at most {error}% wrong: {kept}; mean {np.mean(wrong or [0]):.1f}%")


def row_of(name: str, cell: list[Record]) -> str:
    """The row of the fits of one kind."""
    scenes, truth, estimate, sets = (
        np.mean([one[key] for one in cell]) for key in ("scenes", "truth", "estimate", "sets")
    )
    inside = contained(cell, "truth")
    without = np.mean([one["ungrouped"] or one["estimate"] for one in cell])
    numbers = f"{scenes:.0f} | {truth:.1f} | {estimate:.1f} | {sum(inside)} of {len(inside)}"
    return f"| {name} | {numbers} | {without:.1f} | {sets:.1f} |"


def main() -> None:
    parser = parser_of_sets(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--named", action="store_true", help="the user names the groups")
    args = parser.parse_args()
    file = args.output / "near_copies.jsonl"
    if args.table:
        table(read_records(file))
        return

    def measured(place: Record) -> Record:
        data = data_of(args.root)
        items = eurosat(args.root).train_x
        found = drawn(items, place["kind"], place["copies"], place["seed"])
        return fitted(data, examples_of(data.heads, found, args.named), place["seed"])

    places = [
        {"kind": kind, "copies": number, "seed": seed}
        for seed, (kind, number) in product(range(1, args.seeds + 1), CELLS)
    ]
    measure_each(file, places, measured)


@cache
def eurosat(root: Path) -> Any:
    return dataset(DATASET_REGISTRY.get("EuroSAT"), root)


@cache
def data_of(root: Path) -> Data:
    """No training images: they are drawn for each fit."""
    found = eurosat(root)
    heads = small_heads(found.classnames)
    test = images_of(heads, found.test, TEST)
    return Data(heads, test, test)


def images_of(heads: Heads, items: list[Any], number: int) -> Images:
    """So many images of each class."""
    labels = np.array([item.label for item in items])
    places = of_each_class(labels, number, np.random.default_rng(0))
    images = pictures([items[place].impath for place in places])
    return Images(features(heads, images), labels[places])


if __name__ == "__main__":
    main()
