"""Whether the estimate of `tools/fit.py` holds for near-copies: `python benchmarks/near_copies.py
--output DIR`.

Eight images of each class of EuroSAT, drawn by a seed, are saved with near-copies of one kind. The
truth is the accuracy on 600 other images. A line of near_copies.jsonl in DIR has one fit, so that
the same command resumes; `--table` prints the table of docs/own_classes.md from them.
"""

import argparse
import io
import sys
from collections import defaultdict
from dataclasses import replace
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
from dassl.data.datasets import DATASET_REGISTRY
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

import datasets
from benchmarks.fits import add_record, decided, of_each_class, percent, promised, read_records
from common.names import plain
from datasets import copies
from fit import groups
from fit.decision import Decision
from fit.features import Row
from fit.heads import Heads
from fit.request import FitRequest
from fit.rows import Photo
from fit.trials import Examples
from inference.classifier import PromptedClassifier

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
    """What a fit learns from. If groups are `named`, as by a folder or a CSV file, no near-copies
    are looked for.
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


def fitted(
    heads: Heads, examples: Examples, test: tuple[Tensor, Tensor], seed: int
) -> dict[str, Any]:
    """The record of one fit, with a test on features and labels."""
    request = FitRequest(Path("images"), Path("model"), seed=seed)
    decision, seconds = decided(heads, examples, request)
    logits = logits_of(heads, decision, examples, test[0])
    labels = test[1].numpy()
    record = {"seed": seed, "seconds": seconds, "scenes": len(np.unique(examples.scenes))}
    record["truth"] = percent(logits.argmax(axis=1) == labels)
    record |= {"ungrouped": decision.ungrouped, "chosen": decision.name}
    at = decision.estimates.get(request.prior)
    if at is None or decision.certainty is None or decision.trials is None:
        return record
    record |= {"estimate": at.accuracy, "low": at.low, "high": at.high}
    return record | certainty_of(decision, logits, labels)


def logits_of(heads: Heads, decision: Decision, examples: Examples, x: Tensor) -> NDArray[Any]:
    """(images, classes): the answers of the chosen heads for features (images, width)."""
    learned = (examples.x, examples.y)
    weighted = (weight * heads.answers(one, learned, x).numpy() for one, weight in decision.chosen)
    return np.sum(list(weighted), axis=0)


def certainty_of(decision: Decision, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, Any]:
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


def table(records: list[dict[str, Any]]) -> None:
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


def print_summary(records: list[dict[str, Any]]) -> None:
    """What all fits say together."""
    differences = np.array([one["estimate"] - one["truth"] for one in records])
    inside = np.mean([one["low"] <= one["truth"] <= one["high"] for one in records])
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


def row_of(name: str, cell: list[dict[str, Any]]) -> str:
    """The row of the fits of one kind."""
    scenes, truth, estimate, sets = (
        np.mean([one[key] for one in cell]) for key in ("scenes", "truth", "estimate", "sets")
    )
    inside = sum(one["low"] <= one["truth"] <= one["high"] for one in cell)
    without = np.mean([one["ungrouped"] or one["estimate"] for one in cell])
    numbers = f"{scenes:.0f} | {truth:.1f} | {estimate:.1f} | {inside} of {len(cell)}"
    return f"| {name} | {numbers} | {without:.1f} | {sets:.1f} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of near_copies.jsonl")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the datasets")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--named", action="store_true", help="the user names the groups")
    parser.add_argument(
        "--table", action="store_true", help="print what the fits say, and run nothing"
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    file = args.output / "near_copies.jsonl"
    records = read_records(file)
    if args.table:
        table(records)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    done = {(record["kind"], record["copies"], record["seed"]) for record in records}
    dataset = eurosat(args.root)
    heads = Heads(PromptedClassifier.zero_shot("small", list(map(plain, dataset.classnames))))
    test = test_images(heads, dataset.test)
    for seed, (kind, number) in product(range(1, args.seeds + 1), CELLS):
        if (kind, number, seed) not in done:
            found = drawn(dataset.train_x, kind, number, seed)
            record = fitted(heads, examples_of(heads, found, args.named), test, seed)
            add_record(file, {"kind": kind, "copies": number, **record})
            print(f"{kind} {number} {seed}: {record['seconds']:.0f} s", flush=True)


def eurosat(root: Path) -> Any:
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.DATASET.ROOT = str(root)
    return DATASET_REGISTRY.get("EuroSAT")(cfg)


def test_images(heads: Heads, items: list[Any]) -> tuple[Tensor, Tensor]:
    """Features and labels of TEST images of each class."""
    labels = np.array([item.label for item in items])
    places = of_each_class(labels, TEST, np.random.default_rng(0))
    images = pictures([items[place].impath for place in places])
    return features(heads, images), torch.from_numpy(labels[places])


if __name__ == "__main__":
    main()
