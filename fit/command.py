"""The command `python tools/fit.py`: from a folder of images to the best classifier, with an honest
estimate.
"""

import argparse
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import UsageError, check_name
from common.files import checksum
from common.lock import LOCK
from common.names import as_clip_reads, printable
from common.start import Parser, any_seed, between, path, percent
from common.text import read_json
from datasets.base import missing_files

from .images import check_named, find

FILE = "fit.json"
PRIORS = "folder", "equal"
INSIDE = re.compile("(?<=[a-z])(?=[A-Z])")  # between the words of a CamelCase name
FORM = 2  # of the file; another one is fitted again
DESCRIPTION = """Find the best classifier for a folder of images: zero-shot CLIP, every head of this
project, ensembles of them and, while the minutes last, prompts and CLIP-LoRA are compared on images
that they have not learned from."""
EPILOG = """
IMAGES has one folder for each class, or train/, val/ and test/ with such folders, or is a CSV file
with the columns path and label (and split and group). Images of val/ are learned from, too: folds
take their place. The folder of --to is a MODEL for tools/predict.py, serve.py and export.py;
report.html in it explains the result, fit.json has every number. The same command again resumes,
and more images cost only what is new.
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("images", type=path, metavar="IMAGES", help="folder of class folders, or a CSV file")
    add(
        "--to",
        type=path,
        required=True,
        metavar="MODEL",
        help="folder for the model: new, or of an earlier call",
    )
    add(
        "--backbone",
        default="ViT-B/16",
        help="ViT-B/16, small, a weight file, ... (default: ViT-B/16)",
    )
    add("--device", default="", help="cpu or cuda (default: cuda if there is a GPU)")
    add("--sentences", type=path, metavar="FILE", help="JSON file with sentences for each class")
    words = "train prompts and CLIP-LoRA, too, if they end in time (default: 5)"
    add("--minutes", type=between(-1e-9, 1e5, "a number of minutes"), default=5.0, help=words)
    add(
        "--test",
        type=path,
        metavar="DIR",
        help="test images in class folders, or a CSV file: a second opinion",
    )
    words = "answer `unknown` so that at most so many answers are wrong: 5, 5%% or 0.05"
    add("--max-error", type=percent, metavar="PERCENT", help=words)
    words = (
        "how to find images of one scene, which count once: by names, times and near-copies, "
        "or not at all"
    )
    add("--groups", choices=("auto", "none"), default="auto", help=f"{words} (default: auto)")
    words = (
        "name the groups by the folder below that of the class, or by the capture of REGEX in "
        "the path"
    )
    add("--group-by", default="", metavar="folder|REGEX", help=words)
    words = (
        "how frequent the classes are in new images: as in these, or all equally (default: folder)"
    )
    add("--prior", choices=PRIORS, default=PRIORS[0], help=words)
    add(
        "--methods",
        nargs="+",
        default=[],
        metavar="NAME",
        help="methods to try besides zero-shot CLIP (default: all)",
    )
    add("--seed", type=any_seed, default=1, help="of the folds and of the training (default: 1)")
    return parser.parse_args(argv)


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of the files of a model, by their names."""
    from inference.artefact import EXPORT_CONFIG_FILE, PROMPTS  # imports torch, which takes seconds

    files = [folder / name for name in (EXPORT_CONFIG_FILE, PROMPTS)]
    return {file.name: checksum(file) for file in files if file.is_file()}


def main(argv: list[str] | None = None) -> None:  # noqa: C901, PLR0912
    args = parse(argv)
    if args.groups == "none" and args.group_by:
        raise UsageError(
            "--groups none and --group-by contradict each other", "leave out one of them"
        )
    photos = find(args.images, args.test, args.group_by)
    if args.groups != "none":
        check_named(photos, args.images)
    record: Any = read_json(args.to / FILE) if (args.to / FILE).is_file() else None
    if not isinstance(record, dict) or "form" not in record:
        record = {}
        if args.to.exists() and not (args.to.is_dir() and {LOCK}.issuperset(os.listdir(args.to))):
            raise UsageError(
                f"{args.to} is not an empty folder", "choose another one, or delete it", args.to
            )
    print(
        f"{len(photos):,} images in {len({photo.label for photo in photos})} classes: reading "
        "their checksums"
    )
    if args.max_error:
        print(f"--max-error: at most {args.max_error:g}% of the answers may be wrong")
    joined = sorted({photo.label for photo in photos if INSIDE.search(photo.label)})
    if joined and not args.sentences:
        reads = ", ".join(repr(as_clip_reads(name)) for name in joined[:3])
        better = INSIDE.sub(" ", joined[0])
        print(printable(f"CLIP reads {reads}: names like {better!r} may give better results"))
    missing = set(missing_files(photo.path for photo in photos))
    keys = {
        photo.path: "" if photo.path in missing else checksum(Path(photo.path)) for photo in photos
    }
    photos = [replace(photo, sha256=keys[photo.path]) for photo in photos]
    from clip import weights_sha256  # imports torch, which takes seconds

    from .story import METHODS, fit

    for name in args.methods:
        check_name(name, METHODS, "method")
    rows = [[keys[photo.path], photo.label, photo.part, photo.group] for photo in photos]
    options = "minutes", "methods", "max_error", "seed", "groups", "prior"
    asked = {key: getattr(args, key) for key in options}
    asked |= {
        "images": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "weights": weights_sha256(args.backbone),
    }
    asked |= {"sentences": checksum(args.sentences) if args.sentences else "", "form": FORM}
    if record.get("request") != asked:
        record = {"form": FORM, "finished": False, "request": asked}
    finished = record.get("finished") is True
    if finished and record.get("model") != checksums(args.to):
        print(f"The model in {args.to} is gone or was changed: it is fitted again")
        finished = False
    if finished:
        print(
            f"Already done for these images: see {args.to}/report.html (delete {args.to} to fit "
            "again)"
        )
    else:
        fit(args, photos, keys, record)
