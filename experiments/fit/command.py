"""The command `python tools/fit.py`: from a folder of images to the best classifier, with an honest estimate."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UsageError, check_name
from common.files import check_vacant, checksum, write_text
from common.start import Parser, any_seed, between, path, percent
from common.text import read_json

from ..lock import LOCK, locked
from .images import Photo, find

FILE = "fit.json"
FORM = 1  # of the file; another one is fitted again
DESCRIPTION = """Find the best classifier for a folder of images: zero-shot CLIP, every head of this project, ensembles
of them and, while the minutes last, prompts and CLIP-LoRA are compared on images that they have not learned from."""
EPILOG = """
IMAGES has one folder for each class, or train/, val/ and test/ with such folders, or is a CSV file with the columns
path and label (and split). Images of val/ are learned from, too: folds take their place. The folder of --to is a MODEL
for tools/predict.py, serve.py and export.py; report.html in it explains the result, fit.json has every number. The same
command again resumes, and more images cost only what is new.
"""


minutes = between(-1e-9, 1e5, "a number of minutes")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("images", type=path, metavar="IMAGES", help="folder of class folders, or a CSV file")
    add("--to", type=path, required=True, metavar="MODEL", help="folder for the model: new, or of an earlier call")
    add("--backbone", default="ViT-B/16", help="ViT-B/16, small, a weight file, ... (default: ViT-B/16)")
    add("--device", default="", help="cpu or cuda (default: cuda if there is a GPU)")
    add("--sentences", type=path, metavar="FILE", help="JSON file with sentences for each class")
    add(
        "--minutes",
        type=minutes,
        default=5.0,
        help="train prompts and CLIP-LoRA, too, if they end in time (default: 5)",
    )
    add("--test", type=path, metavar="DIR", help="test images in class folders, or a CSV file: a second opinion")
    add(
        "--max-error",
        type=percent,
        metavar="PERCENT",
        help="answer `unknown` so that at most so many answers are wrong",
    )
    add("--methods", nargs="+", default=[], metavar="NAME", help="methods to try besides zero-shot CLIP (default: all)")
    add("--seed", type=any_seed, default=1, help="of the folds and of the training (default: 1)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    photos = find(args.images, args.test)
    if args.to.exists() and not (args.to / FILE).is_file():
        others = args.to if not args.to.is_dir() or set(os.listdir(args.to)) - {LOCK} else None
        if others:
            check_vacant(args.to)
            raise UsageError(f"{args.to} is not a folder", "choose another one", args.to)
    print(f"{len(photos):,} images in {len({photo.label for photo in photos})} classes: reading their checksums")
    keys = {photo.path: checksum(Path(photo.path)) for photo in photos}
    from .story import METHODS, fit, heads_of  # imports torch, which takes seconds

    for name in args.methods:
        check_name(name, METHODS, "method")
    asked = request(args, photos, keys)
    if is_finished(args.to / FILE, asked):
        print(f"Already done for these images: see {args.to}/report.html (delete {args.to} to fit again)")
        return
    heads = heads_of(args, sorted({photo.label for photo in photos if photo.part != "test"}))
    with locked(args.to):
        write_text(args.to / FILE, json.dumps({"form": FORM, "finished": False}) + "\n")
        fit(args, photos, keys, asked, heads)


def request(args: argparse.Namespace, photos: Sequence[Photo], keys: dict[str, str]) -> dict[str, Any]:
    """What a fit depends on, as JSON: another one gives another result."""
    import hashlib

    from clip import weights_sha256

    rows = [[keys[photo.path], photo.label, photo.part] for photo in photos]
    return {
        "form": FORM,
        "images": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "weights": weights_sha256(args.backbone),
        "sentences": checksum(args.sentences) if args.sentences else "",
        "minutes": args.minutes,
        "methods": args.methods,
        "max_error": args.max_error,
        "seed": args.seed,
    }


def is_finished(file: Path, asked: dict[str, Any]) -> bool:
    """Whether a file is the record of a fit that was asked for in the same way."""
    if not file.is_file():
        return False
    record = read_json(file)
    return isinstance(record, dict) and record.get("finished") is True and record.get("request") == asked
