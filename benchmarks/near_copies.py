"""Whether the estimate of `tools/fit.py` holds for near-copies: `python benchmarks/near_copies.py
--output DIR`.

Eight images of each class of EuroSAT, drawn by a seed, are saved with near-copies of one kind. The
truth is the accuracy on 600 other images. A line of near_copies.jsonl in DIR has one fit, so that
the same command resumes; `--table` prints the table of docs/own_classes.md from them.
"""

import argparse
import io
import json
import sys
import time
from collections import defaultdict
from contextlib import redirect_stdout
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
from dassl.data.datasets import DATASET_REGISTRY
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

import datasets
from common.errors import UsageError
from datasets import copies
from fit import groups
from fit.candidates import CANDIDATES, SENTENCES
from fit.decision import Decision, decide
from fit.features import Row
from fit.heads import Heads
from fit.images import Photo
from fit.request import FitRequest
from fit.trials import Examples
from inference.calibration import Threshold
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


def fitted(
    heads: Heads,
    items: list[Any],
    test: tuple[Tensor, Tensor],
    kind: str,
    number: int,
    seed: int,
    named: bool,
) -> Any:
    """The record of one fit. If groups are `named`, as by a folder or a CSV file, no near-copies
    are looked for.
    """
    rng = np.random.default_rng([seed, number])
    labels = np.array([item.label for item in items])
    places = [
        rng.permutation(np.flatnonzero(labels == label))[:IMAGES]
        for label in range(len(heads.names))
    ]
    chosen = np.concatenate(places)
    images = pictures([items[place].impath for place in chosen])
    source = np.concatenate([np.arange(len(chosen)), np.arange(len(chosen)).repeat(number)])
    images += [KINDS[kind](images[place], rng) for place in source[len(chosen) :]]
    x = features(heads, images)
    y = torch.from_numpy(labels[chosen][source])
    names = [str(place) if named else "" for place in source]
    photos = [
        Photo(str(place), heads.names[label], group=names[place]) for place, label in enumerate(y)
    ]
    unlike = np.zeros(copies.SHAPE, dtype=np.int8)
    rows = {
        photo.path: Row("", unlike if named else copies.signature(image), copies.Taken(), feature)
        for photo, image, feature in zip(photos, images, x, strict=True)
    }
    request = FitRequest(Path("images"), Path("model"), seed=seed)
    scenes, _ = groups.find(photos, rows)
    examples = Examples(x, y, copies.numbered(scenes), heads.names)
    heads.seed = seed
    candidates = [one for one in CANDIDATES if one.method != SENTENCES]
    began = time.process_time()
    with redirect_stdout(io.StringIO()):
        found = decide(heads, examples, candidates, request)
    logits: Any = sum(
        weight * heads.answers(one, (x, y), test[0]).numpy() for one, weight in found.chosen
    )
    correct = logits.argmax(axis=1) == test[1].numpy()
    at = found.estimates.get(request.prior)
    sure = found.certainty
    record = {
        "kind": kind,
        "copies": number,
        "seed": seed,
        "seconds": time.process_time() - began,
        "scenes": len(np.unique(scenes)),
    }
    record |= {
        "truth": 100 * float(correct.mean()),
        "ungrouped": found.ungrouped,
        "chosen": found.name,
    }
    if at is None or sure is None or found.trials is None:
        return record
    record |= {"estimate": at.accuracy, "low": at.low, "high": at.high}
    record["sets"] = 100 * float(
        sure.sets.apply(logits, 0.9)[np.arange(len(logits)), test[1]].mean()
    )
    probabilities = np.exp(sure.temperature.apply(logits))
    record["confidence"] = 100 * float(
        (probabilities.max(axis=1) / probabilities.sum(axis=1)).mean()
    )
    record["errors"] = kept_promises(found, logits, correct)
    return record


def kept_promises(
    decision: Decision, logits: NDArray[Any], correct: NDArray[np.bool_]
) -> dict[int, float]:
    """Of each error that can be promised the share of wrong answers among those that are given, in
    percent.
    """
    assert decision.trials is not None
    sample = decision.trials.sample
    wrong = {}
    for error in ERRORS:
        try:
            fits = decision.logits[0], sample.labels, error / 100
            threshold = Threshold.fit(*fits, sample=sample)
        except UsageError:
            continue
        given = threshold.apply(logits)
        wrong[error] = 100 * float((~correct[given]).mean()) if given.any() else 0.0
    return wrong


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
        print(
            f"at most {error}% wrong: {len(wrong)} fits promise it, {over} have more; mean "
            f"{np.mean(wrong or [0]):.1f}%"
        )


def row_of(name: str, cell: list[dict[str, Any]]) -> str:
    """The row of the fits of one kind."""
    scenes, truth, estimate, sets = (
        np.mean([one[key] for one in cell]) for key in ("scenes", "truth", "estimate", "sets")
    )
    inside = sum(one["low"] <= one["truth"] <= one["high"] for one in cell)
    without = np.mean([one["ungrouped"] or one["estimate"] for one in cell])
    numbers = f"{scenes:.0f} | {truth:.1f} | {estimate:.1f} | {inside} of {len(cell)}"
    return f"| {name} | {numbers} | {without:.1f} | {sets:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of near_copies.jsonl")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the datasets")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--named", action="store_true", help="the user names the groups")
    parser.add_argument(
        "--table", action="store_true", help="print what the fits say, and run nothing"
    )
    args = parser.parse_args()
    file = args.output / "near_copies.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    if args.table:
        table(records)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    done = {(record["kind"], record["copies"], record["seed"]) for record in records}
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.DATASET.ROOT = str(args.root)
    dataset: Any = DATASET_REGISTRY.get("EuroSAT")(cfg)
    names = [name.replace("_", " ") for name in dataset.classnames]
    heads = Heads(PromptedClassifier.zero_shot("small", names))
    test = test_images(heads, dataset.test)
    for seed, (kind, number) in product(range(1, args.seeds + 1), CELLS):
        if (kind, number, seed) not in done:
            record = fitted(heads, dataset.train_x, test, kind, number, seed, args.named)
            with open(file, "a") as lines:
                lines.write(json.dumps(record) + "\n")
            print(f"{kind} {number} {seed}: {record['seconds']:.0f} s", flush=True)


def test_images(heads: Heads, items: list[Any]) -> tuple[Tensor, Tensor]:
    """Features and labels of TEST images of each class."""
    labels = np.array([item.label for item in items])
    rng = np.random.default_rng(0)
    places = np.concatenate(
        [
            rng.permutation(np.flatnonzero(labels == label))[:TEST]
            for label in range(len(heads.names))
        ]
    )
    images = pictures([items[place].impath for place in places])
    return features(heads, images), torch.from_numpy(labels[places])


if __name__ == "__main__":
    main()
