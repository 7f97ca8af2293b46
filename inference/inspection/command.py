"""The command `python tools/inspect.py`: what a model has learned, and where it looks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UsageError
from common.files import new_folder
from common.start import Parser, at_least, path, required_packages

from ..arguments import (
    MODELS,
    add_image_options,
    add_model_options,
    check_exists,
    load_options,
)

if TYPE_CHECKING:
    from .measures import Measures

BATCH = 50  # images at a time: the attention of ViT-B/16 takes 100 MB a layer
ROLLED_OUT = 6  # images of the roll-out


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Look inside a model: the words nearest to its text vectors, the prompts at "
        "each layer, and, over "
        "images, the attention that CLS pays to patches, new prompts and carried prompts.",
        epilog=f"{MODELS} The folder gets inspect.html, inspect.json, and the pictures as PNG and "
        "SVG. `inspect.py predictions RUN` draws what the test of a run predicted.",
    )
    parser.add_argument("model", type=path, metavar="MODEL")
    parser.add_argument(
        "--images", type=path, nargs="+", default=[], metavar="PATH", help="image files, or folders"
    )
    parser.add_argument(
        "--output", type=path, required=True, metavar="FOLDER", help="a new folder, or an empty one"
    )
    parser.add_argument(
        "--topk", type=at_least(1), default=5, metavar="K", help="words for a vector (default: 5)"
    )
    add_model_options(parser)
    add_image_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    options = load_options(args)
    names = options.class_names or None
    check_exists(args.model)
    with required_packages():
        import torch

        from datasets.base import spread

        from ..images import find_images
        from ..load import load
        from . import page
        from .measures import Measures
    files = find_images(args.images) if args.images else []
    with new_folder(args.output) as folder, torch.no_grad():
        classifier = load(args.model, options)
        classifier.require_one_view("an inspection")
        classifier.check_logits(names)
        measures = Measures(classifier, names)
        good = add_images(files, measures)
        if files and not good:
            raise UsageError(f"none of the {len(files)} images could be read", "see above")
        some = spread(good, ROLLED_OUT)
        pixels = classifier.pixels(some)
        page.write(measures.summary(args.topk, some, pixels), classifier.colours(pixels), folder)
    print(f"Written: inspect.html, inspect.json and pictures to {args.output}")
    if len(good) < len(files):
        sys.exit(1)


def add_images(files: Sequence[Path], measures: "Measures") -> list[Path]:
    """Measure image files in batches; returns those that can be read, and names the others."""
    from tqdm import tqdm

    from ..batches import read_batch

    good = []
    with tqdm(total=len(files), unit="image", disable=None) as bar:
        for start in range(0, len(files), BATCH):
            some = files[start : start + BATCH]
            faults, inputs = read_batch(some, [measures.classifier])
            for pixels in inputs:
                measures.add(pixels)
            for file, fault in zip(some, faults, strict=True):
                if fault:
                    bar.write(f"skipped: {fault}", file=sys.stderr)
                else:
                    good.append(file)
            bar.update(len(some))
    return good
