"""Whether the estimate of a fit holds for near-copies: `python benchmarks/near_copies.py --sources
DIR ... --output DIR`.

Eight images of each class, drawn by a seed, are saved with near-copies of one kind. The truth is
the accuracy on images apart (benchmarks/real/images.py). The heads are those of the small CLIP that
are computed at once. A line of near_copies.jsonl in DIR has one fit, so that the same command
resumes; `--table` prints what the lines say. The rules of `fit` were chosen on KINDS alone.
"""

import io
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
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
from PIL import Image, ImageFilter
from torch import Tensor

from benchmarks.real import images as sets
from common.errors import UsageError
from common.start import Parser
from datasets import image_facts
from fit import photos as groups
from fit.candidates import CANDIDATES, CLOSED_FORM, SENTENCES
from fit.decision import decide_among
from fit.estimate import estimate_by
from fit.features import EncodedImage
from fit.heads import Heads
from fit.options import FitRequest
from fit.photos import Photos
from fit.read_images import Photo
from fit.trials import Backbone, Examples
from inference.classifier import PromptedClassifier
from runs.session import run_command

IMAGES = 8  # of each class
COPIES = 0, 1, 4  # of each image
SETS = "eurosat", "small_land", "fashion_mnist", "stamps"
HEADS = [one for one in CANDIDATES if one.method in CLOSED_FORM and one.method != SENTENCES]
NONE = "none"
Record = dict[str, Any]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def of_pixels(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def with_noise(image: Image.Image, levels: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=float)
    return of_pixels(pixels + rng.normal(0, levels, pixels.shape))


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def frame(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A moment later: shifted by up to a tenth, noise of 3 levels, light up to 7% other, JPEG."""
    width, height = image.size
    margin = max(image.size) // 10 + 1
    edges = (margin, margin), (margin, margin), (0, 0)
    padded = np.pad(np.asarray(image, dtype=float), edges, mode="reflect")
    x, y = (margin + round(rng.uniform(-0.1, 0.1) * side) for side in image.size)
    pixels = padded[y : y + height, x : x + width] * rng.uniform(0.93, 1.07)
    return as_jpeg(with_noise(of_pixels(pixels), 3, rng), 88)


def part(image: Image.Image, left: float, top: float, share: float) -> Image.Image:
    """A share of the width and height, at a place from 0 to 1, as large as the image."""
    width, height = image.size
    x, y = left * (1 - share) * width, top * (1 - share) * height
    box = x, y, x + share * width, y + share * height
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    left, top = rng.uniform(0, 1, 2)
    return part(image, left, top, rng.uniform(0.9, 0.97))


def saved_again(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return as_jpeg(image, int(rng.integers(40, 91)))


def noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return with_noise(image, rng.uniform(1, 6), rng)


def blurred(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5) * max(image.size) / 64))


def other_gamma(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    exponent = rng.choice([0.8, 0.85, 1.2, 1.25])
    return of_pixels(255 * (np.asarray(image) / 255) ** exponent)


def tinted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return of_pixels(np.asarray(image) * rng.uniform(0.9, 1.1, 3))


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """By 1 to 3 degrees, with the mean colour at the corners."""
    angle = rng.choice([-1, 1]) * rng.uniform(1, 3)
    colour = tuple(np.asarray(image).mean(axis=(0, 1)).astype(int).tolist())
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=colour)


def with_spot(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A square of any colour, of 15% of the shorter side, in front of it."""
    side = round(0.15 * min(image.size))
    x, y = (int(rng.integers(0, length - side + 1)) for length in image.size)
    pixels = np.array(image)
    pixels[y : y + side, x : x + side] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def nearer(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return part(image, 0.5, 0.5, 1 - rng.uniform(0.05, 0.1))


KINDS: dict[str, Change] = {
    "frames": frame,
    "crops": cropped,
    "saved again": saved_again,
    "noise": noisy,
    "blur": blurred,
}
OTHERS: dict[str, Change] = {
    "gamma": other_gamma,
    "colour cast": tinted,
    "turned": turned,
    "spot": with_spot,
    "scaled": nearer,
}


class Pictures(NamedTuple):
    """Images to draw from, heads, and the features and labels of the images apart."""

    images: Sequence[Image.Image]
    labels: NDArray[np.int64]
    heads: Heads
    test: Tensor
    answers: NDArray[np.int64]


@cache
def pictures(name: str, sources: tuple[Path, ...], output: Path) -> Pictures:
    """A data set, which is built below the folder `output`."""
    folder = sets.build(name, sources, output / "sets")
    names = sorted(path.name for path in (folder / "train").iterdir())
    heads = Heads(PromptedClassifier.zero_shot("small", names))
    found = []
    for inside in ("train", "test"):
        paths = sorted((folder / inside).rglob("*.png"))
        images = [Image.open(path).convert("RGB") for path in paths]
        labels = np.array([names.index(path.parent.name) for path in paths])
        found.append((images, labels))
    (images, labels), (apart, answers) = found
    return Pictures(images, labels, heads, features(heads, apart), answers)


@torch.no_grad()
def features(heads: Heads, images: Sequence[Image.Image]) -> Tensor:
    """(images, width)."""
    found = []
    for start in range(0, len(images), 64):
        pixels = [heads.zero_shot.transform(image) for image in images[start : start + 64]]
        found.append(heads.tower.image_output(torch.stack(pixels)).feature.float())
    return torch.cat(found)


def drawn(
    data: Pictures, kind: str, number: int, seed: int
) -> tuple[list[Image.Image], NDArray[np.int64], NDArray[np.int64]]:
    """Images with so many near-copies of each; their labels; and of which image each is one."""
    rng = np.random.default_rng(seed)
    places = [
        rng.permutation(np.flatnonzero(data.labels == label))[:IMAGES]
        for label in np.unique(data.labels)
    ]
    chosen = np.concatenate(places)
    images = [data.images[place] for place in chosen]
    source = np.arange(len(images)).repeat(number)
    changes = KINDS | OTHERS
    images += [changes[kind](images[place], rng) for place in source]
    source = np.concatenate([np.arange(len(chosen)), source])
    return images, data.labels[chosen][source], source


def examples_of(
    heads: Heads, images: Sequence[Image.Image], labels: NDArray[np.int64]
) -> tuple[Examples, Photos]:
    """The images of a fit, in groups."""
    x = features(heads, images)
    listed = [Photo(str(place), heads.names[label]) for place, label in enumerate(labels.tolist())]
    rows = {
        photo.path: EncodedImage("", image_facts.signature(image), image_facts.Taken(), feature)
        for photo, image, feature in zip(listed, images, x, strict=True)
    }
    photos = Photos(listed, heads.names, {}, []).in_groups(groups.find_groups(listed, rows))
    y = torch.from_numpy(labels)
    return Examples(x, y, photos.groups, heads.names, certain=photos.certain), photos


def cell(args: Namespace, name: str, kind: str, number: int, seed: int) -> Record:
    """The record of one fit, with its test."""
    data = pictures(name, tuple(args.sources), args.output)
    heads = data.heads
    images, labels, source = drawn(data, kind, number, seed)
    examples, photos = examples_of(heads, images, labels)
    heads.seed = seed
    request = FitRequest(images=Path("images"), to=Path("model"), seed=seed)
    backbone = Backbone("", heads, examples, HEADS)
    with redirect_stdout(io.StringIO()):
        _, decision = decide_among([backbone], request)
    weighted = [
        weight * heads.answers(one, examples.seen, data.test).numpy()
        for one, weight in decision.chosen
    ]
    truth = float(100 * np.mean(np.sum(weighted, axis=0).argmax(axis=1) == data.answers))
    estimate = decision.estimates["folder"]
    groups = examples.groups
    without_groups = None
    if examples.unit == "group" and decision.zero_shot is not None:
        alone = np.arange(len(groups))
        without_groups = estimate_by(alone, backbone, decision.chosen, decision.zero_shot, request)
    return {
        "truth": truth,
        "estimate": estimate.accuracy,
        "low": estimate.low,
        "high": estimate.high,
        "scenes": len(np.unique(source)),
        "groups": len(np.unique(groups)),
        "together": float(np.mean(groups == groups[source])),
        "without_groups": without_groups,
        "apart": decision.apart,
        "doubt": photos.doubt,
    }


def cells(args: Namespace) -> Iterator[Record]:
    """What names each fit."""
    kinds = [*(KINDS | OTHERS)] if args.others else [*KINDS]
    for seed in range(1, args.seeds + 1):
        for name in args.sets:
            yield {"name": name, "kind": NONE, "number": 0, "seed": seed}
            for kind in kinds:
                for number in COPIES[1:]:
                    yield {"name": name, "kind": kind, "number": number, "seed": seed}


def table(records: DataFrame) -> Iterator[str]:
    """A row for each kind and number of near-copies, of all data sets and of each."""
    inside = records["truth"].between(records["low"], records["high"])
    width = (records["high"] - records["low"]) / 4
    records = records.assign(
        contained=100 * inside,
        error=records["estimate"] - records["truth"],
        before=records["without_groups"].fillna(records["estimate"]) - records["truth"],
        said=(records["apart"] - records["estimate"]).abs() > width,
        share=records["groups"] / records["scenes"],
    )
    columns = ["truth", "error", "before", "contained", "said", "share", "together"]
    for keys in (["number", "kind"], ["name", "number"], ["name", "number", "kind"]):
        rows = records.groupby(keys)
        means = rows[columns].mean().round(2).assign(fits=rows.size())
        yield means.reset_index().to_string(index=False)
    yield f"{len(records)} fits: {inside.mean():.1%} of the intervals contain the truth"


def run(args: Namespace, file: Path) -> None:
    """Add a line to a file for each fit that it lacks."""
    done = [json.loads(line) for line in file.open()] if file.is_file() else []
    for place in cells(args):
        if any(place.items() <= record.items() for record in done):
            continue
        began = time.monotonic()
        record = place | cell(args, **place)
        with open(file, "a") as lines:
            lines.write(json.dumps(record) + "\n")
        print(f"{place}: {time.monotonic() - began:.1f} s", flush=True)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the records")
    parser.add_argument("--table", action="store_true", help="print what the records say")
    parser.add_argument("--sources", type=Path, nargs="+", default=[], help="opened packages")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--others", action="store_true", help="also kinds that chose no rule")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "near_copies.jsonl"
    if not args.table:
        run(args, file)
        return
    if not file.is_file():
        raise UsageError(f"{file} is not there", "run the same command without --table")
    print("\n\n".join(table(DataFrame(map(json.loads, file.open())))))


if __name__ == "__main__":
    run_command(main, "from the fits that are done")
