"""The command `python tools/predict.py`: the most probable classes of images."""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from common.errors import UsageError
from common.names import csv_cell, padded, printable, width
from common.start import Parser, at_least, path, required_packages

from .arguments import (
    MODELS,
    add_calibration_options,
    add_image_options,
    add_model_options,
    check_exists,
    load_options,
)

SHOWN = 5  # classes of a set in the table
Row = dict[str, Any]  # of `batches.predict_files`


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Print the most probable classes of images.",
        usage="predict.py [options] MODEL [MODEL ...] IMAGE|FOLDER [...] [--classes NAME ...]",
        epilog=f"{MODELS} Several models are compared. Without a MODEL, --backbone and --classes "
        "give "
        "zero-shot CLIP. The exit status is 1 if some of the images could not be read (they are "
        "reported and skipped), "
        "and 2 after another error.",
    )
    add = parser.add_argument
    add("paths", type=path, nargs="+", metavar="PATH", help="models first, then images or folders")
    add_model_options(parser)
    add_image_options(parser)
    text = "number of classes to print for each image (default: 5)"
    add("--topk", type=at_least(1), default=5, metavar="K", help=text)
    text = "images at a time (default: 100)"
    add("--batch-size", type=at_least(1), default=100, metavar="N", help=text)
    add_calibration_options(parser)
    forms = parser.add_mutually_exclusive_group()
    form: dict[str, Any] = {"action": "store_const", "dest": "form", "default": as_table}
    forms.add_argument("--json", const=as_json, help="print JSON and nothing else", **form)
    forms.add_argument("--csv", const=as_csv, help="print CSV, a row for each class", **form)
    return parser.parse_intermixed_args(argv)  # options may stand between the model and the images


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for file in args.paths:
        if args.form is not as_table and file.suffix in (".csv", ".json") and not file.exists():
            raise UsageError("--csv and --json print, and take no file", f"write to it by > {file}")
    options = load_options(args, calibration=True if args.unknown or args.sets else None)
    names = options.class_names
    stdout = sys.stdout
    check_exists(args.paths[0], "model or image" if args.backbone else "model")
    with redirect_stdout(sys.stderr):  # what libraries print must not get among the results
        with required_packages():
            from . import batches, images, models
        is_image = (not models.kind_of(path) for path in args.paths)
        number = next((n for n, is_one in enumerate(is_image) if is_one), len(args.paths))
        if not number and not args.backbone:
            models.read_model(args.paths[0], options)  # which says why it is not a model
        files = images.find_images(args.paths[number:])
        with images.one_thread():
            opened = models.open_models(args.paths[:number], options)
        for model in opened:
            model.classifier.check_asked(args.unknown, args.sets, names or None)
        batches.prepare(opened, names or None)
        asked = args.topk, args.unknown, args.sets
        answers = batches.predict_files(opened, files, names or None, args.batch_size, *asked)
        skipped: list[str] = []
        rows = rows_of(answers, skipped, len(files), stdout)
        args.form(stdout, rows, files, opened, names, args.unknown, args.sets)
    if skipped:
        sys.exit(1)


def rows_of(
    batches: Iterable[tuple[list[Row], list[str]]], skipped: list[str], number: int, out: TextIO
) -> Iterator[Row]:
    """The rows of all images. Images that cannot be read are `skipped`, and reported on stderr.

    Args:
        number: of the images.
        out: where the rows are written.

    Raises:
        UsageError: no image could be read.
    """
    from tqdm import tqdm

    with tqdm(total=number, desc="predicting", unit="image", disable=None) as bar:
        for rows, faults in batches:
            if faults and number == 1:
                raise UsageError(faults[0])
            skipped += faults
            with bar.external_write_mode(out):
                for fault in faults:
                    print(f"skipped: {fault}", file=sys.stderr)
                yield from rows
                out.flush()
            bar.update(len({row["image"] for row in rows}) + len(faults))
    if len(skipped) == number:
        raise UsageError(f"none of the {number} images could be read", "see above")


def as_json(out: TextIO, rows: Iterable[Row], *layout) -> None:
    before = "[\n"
    for row in rows:
        content = {key: value for key, value in row.items() if value is not None}
        out.write(f"{before} {json.dumps(content)}")
        before = ",\n"
    out.write("\n]\n")


def as_csv(
    out: TextIO, rows: Iterable[Row], files, models, names, unknown: bool, sets: float | None
) -> None:
    """The most probable classes of each image and, with `sets`, all classes of the set."""
    header = ["image", "model", "rank", "class", "probability"]
    if unknown:
        header.append("unknown")
    if sets is not None:
        header.append("in_set")
    writer = csv.DictWriter(out, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        members = row["set"] or []
        pairs = members if len(members) > len(row["top"]) else row["top"]
        for rank, pair in enumerate(pairs, start=1):
            values = row | pair | {"rank": rank, "in_set": pair in members}
            writer.writerow({key: csv_cell(value) for key, value in values.items()})


def as_table(
    out: TextIO, rows: Iterable[Row], files: Sequence[Path], models, names: Sequence[str], *asked
) -> None:
    known = names or [name for model in models for name in model.classifier.class_names]
    image_width = max(width(printable(file)) for file in files)
    model_width = max(width(printable(model.name)) for model in models)
    class_width = max(map(width, known))
    for row in rows:
        cells = [
            padded(printable(row["image"]), image_width),
            padded(printable(row["model"]), model_width),
        ]
        if row["unknown"] is not None:
            cells.append("unknown" if row["unknown"] else " " * len("unknown"))
        if row["set"] is not None:
            cells.append(set_text(row["set"]))
        else:
            cells.append("   ".join(bar_text(pair, class_width) for pair in row["top"]))
        out.write("  ".join(cells) + "\n")


def bar_text(pair: dict[str, Any], columns: int) -> str:
    return f"{padded(pair['class'], columns)} {100 * pair['probability']:5.1f} %"


def set_text(members: Sequence[dict[str, Any]]) -> str:
    """The names of a set, of which a table shows the first."""
    text = ", ".join(pair["class"] for pair in members[:SHOWN])
    if len(members) > SHOWN:
        text += f", and {len(members) - SHOWN} more"
    return f"{{{text}}}"
