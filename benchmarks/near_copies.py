"""Whether the estimate of `tools/fit.py` holds for near-copies: `python benchmarks/near_copies.py
--output DIR`.

Eight images of each class of EuroSAT, drawn by a seed, are saved with near-copies of one kind. The
truth is the accuracy on 600 other images. A line of near_copies.jsonl in DIR has one fit, so that
the same command resumes; `--table` prints the table of docs/own_classes.md from them.
"""

import io
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# The project instead of benchmarks/, so that its packages are found first
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from numpy.typing import NDArray
from pandas import DataFrame
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from benchmarks.fits import (
    RESUMES,
    Images,
    Record,
    contained,
    covered,
    decided,
    estimate_of,
    grid,
    kept_promises,
    logits_of,
    markdown,
    of_each_class,
    parser_of_sets,
    percent,
    run,
)
from benchmarks.real.images import dataset
from benchmarks.sets import features, images_of, pictures, small_heads
from datasets import copies
from datasets.eurosat import EuroSAT
from fit import groups
from fit.decision import Decision
from fit.features import Row
from fit.heads import Heads
from fit.rows import Photo
from fit.trials import Examples
from runs.session import run_command

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
    mirror = rng.choice(["left to right", "top to bottom", "none"], p=[0.5, 0.15, 0.35])
    if mirror == "left to right":
        image = ImageOps.mirror(image)
    elif mirror == "top to bottom":
        image = ImageOps.flip(image)
    width, height = image.size
    pixels = np.pad(np.asarray(image), ((12, 12), (12, 12), (0, 0)), mode="reflect")
    large = Image.fromarray(pixels).rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    return large.crop((12, 12, 12 + width, 12 + height))


KINDS = {"saved again": saved_again, "next frame": next_frame, "turned": turned}
CELLS = [("none", 0), *((kind, number) for number in (2, 4, 9) for kind in KINDS)]


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
    scenes = groups.find(photos, rows).scenes
    return Examples(x, found.labels, copies.numbered(scenes), heads.names)


@cache
def loaded(root: Path) -> tuple[list[Any], Heads, Images]:
    """What images are drawn from, heads, and the test."""
    images = dataset(EuroSAT, root)
    heads = small_heads(images.classnames)
    return images.train_x, heads, images_of(heads, images.test, TEST)


def cell(args: Namespace, kind: str, copies: int, seed: int) -> Record:
    """The record of one fit, with a test."""
    items, heads, test = loaded(args.root)
    examples = examples_of(heads, drawn(items, kind, copies, seed), args.named)
    decision, seconds = decided(heads, examples, seed)
    logits = logits_of(heads, decision, examples, test.x)
    record: Record = {"seconds": seconds, "scenes": len(np.unique(examples.scenes))}
    record["truth"] = percent(logits.argmax(axis=1) == test.labels)
    record |= {"ungrouped": decision.ungrouped, "chosen": decision.name}
    if decision.certainty is None:
        return record
    return record | estimate_of(decision) | certainty_of(decision, logits, test.labels)


def certainty_of(decision: Decision, logits: NDArray[Any], labels: NDArray[Any]) -> Record:
    """How sets, confidences and promises of a fit hold on a test, in percent."""
    assert decision.certainty is not None
    probabilities = np.exp(decision.certainty.temperature.apply(logits))
    confidence = probabilities.max(axis=1) / probabilities.sum(axis=1)
    kept = kept_promises(decision, logits, labels, ERRORS)
    return {
        "sets": percent(covered(decision, logits, labels)),
        "confidence": 100 * float(confidence.mean()),
        "errors": {error: wrong for error, (_, wrong) in kept.items()},
    }


def table(records: DataFrame) -> Iterator[str]:
    """A row for each kind and number of near-copies, and a summary of all fits."""
    records["contained"] = contained(records, "truth")
    records["without groups"] = records["ungrouped"].astype(float).fillna(records["estimate"])
    cells = records.groupby(["copies", "kind"])
    means = cells[["scenes", "truth", "estimate", "without groups", "sets"]].mean()
    rows = means.map("{:.1f}".format).assign(contained=cells["contained"].sum(), fits=cells.size())
    yield markdown(rows.reset_index())
    errors = records["estimate"] - records["truth"]
    inside = 100 * records["contained"].mean()
    yield f"{len(records)} fits: {inside:.1f}% of the intervals contain the truth"
    spread = errors.std(ddof=0)
    yield f"estimate - truth: mean {errors.mean():+.2f}, standard deviation {spread:.2f}"
    yield f"sets for 90%: {records['sets'].mean():.1f}%"
    yield f"confidence - truth: {(records['confidence'] - records['truth']).mean():+.1f}"
    for error, wrong in DataFrame([*records["errors"]]).items():
        over = (wrong > float(error)).sum()
        kept = f"{wrong.count()} fits promise it, {over} have more"
        yield f"at most {error}% wrong: {kept}; mean {wrong.mean():.1f}%"


def main() -> None:
    parser = parser_of_sets(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--named", action="store_true", help="the user names the groups")
    args = parser.parse_args()
    places = [
        {"kind": kind, "copies": number, **one}
        for one in grid(seed=range(1, args.seeds + 1))
        for kind, number in CELLS
    ]
    run(args, "near_copies.jsonl", places, cell, table)


if __name__ == "__main__":
    run_command(main, RESUMES)
