"""The command `python tools/predict.py`: the most probable classes of images."""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

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

if TYPE_CHECKING:
    from .models import Model
    from .predictions import Pairs, Predictions

SHOWN = 5  # classes of a set in the table


class Row(NamedTuple):
    """What a model says of an image; `unknown` and `set` are None if they were not asked for."""

    image: str
    model: str
    top: "Pairs"
    unknown: bool | None = None
    set: "Pairs | None" = None


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
    add(
        "--topk",
        type=at_least(1),
        default=5,
        metavar="K",
        help="number of classes to print for each image (default: 5)",
    )
    add(
        "--batch-size",
        type=at_least(1),
        default=100,
        metavar="N",
        help="images at a time (default: 100)",
    )
    add_calibration_options(parser)
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        "--json",
        action="store_const",
        dest="form",
        const=as_json,
        help="print JSON and nothing else",
    )
    forms.add_argument(
        "--csv",
        action="store_const",
        dest="form",
        const=as_csv,
        help="print CSV, a row for each class",
    )
    parser.set_defaults(form=as_table)
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
            from . import images, models
        is_image = (not models.kind_of(path) for path in args.paths)
        number = next((n for n, is_one in enumerate(is_image) if is_one), len(args.paths))
        if not number and not args.backbone:
            models.read_model(args.paths[0], options)  # which says why it is not a model
        files = images.find_images(args.paths[number:])
        with images.one_thread():
            opened = models.open_models(args.paths[:number], options)
        for model in opened:
            model.classifier.check_asked(args.unknown, args.sets, names or None)
        images.prepare(opened, names or None)
        batches = images.predict_files(opened, files, names or None, args.batch_size)
        skipped: list[str] = []
        rows = rows_of(batches, opened, args, skipped, len(files), stdout)
        args.form(stdout, rows, files, opened, names, args.unknown, args.sets)
    if skipped:
        sys.exit(1)


def rows_of(
    batches: Iterable[tuple[list[Path], list["Predictions"], list[str]]],
    models: Sequence["Model"],
    args: argparse.Namespace,
    skipped: list[str],
    number: int,
    out: TextIO,
) -> Iterator[Row]:
    """The rows of all images. Those that cannot be read are `skipped`, and reported on stderr.

    Args:
        number: of the images.
        out: where the rows are written.

    Raises:
        UsageError: no image could be read.
    """
    from tqdm import tqdm

    with tqdm(total=number, desc="predicting", unit="image", disable=None) as bar:
        for files, answers, faults in batches:
            if faults and number == 1:
                raise UsageError(faults[0])
            skipped += faults
            with bar.external_write_mode(out):
                for fault in faults:
                    print(f"skipped: {fault}", file=sys.stderr)
                columns = [
                    rows_by(model, said, files, args)
                    for model, said in zip(models, answers, strict=bool(files))
                ]
                for row in zip(*columns, strict=True):
                    yield from row
                out.flush()
            bar.update(len(files) + len(faults))
    if len(skipped) == number:
        raise UsageError(f"none of the {number} images could be read", "see above")


def rows_by(
    model: "Model", said: "Predictions", files: Sequence[Path], args: argparse.Namespace
) -> list[Row]:
    """What one model says of each file."""
    nothing = [None] * len(files)
    unknown = said.unknown.tolist() if args.unknown else nothing
    sets = nothing if args.sets is None else said.sets(args.sets)
    answers = zip(files, said.top(args.topk), unknown, sets, strict=True)
    return [Row(str(file), model.name, *answer) for file, *answer in answers]


def as_json(out: TextIO, rows: Iterable[Row], *layout) -> None:
    before = "[\n"
    for row in rows:
        content: dict[str, Any] = {
            "image": row.image,
            "model": row.model,
            "top": as_objects(row.top),
        }
        if row.unknown is not None:
            content["unknown"] = row.unknown
        if row.set is not None:
            content["set"] = as_objects(row.set)
        out.write(f"{before} {json.dumps(content)}")
        before = ",\n"
    out.write("\n]\n")


def as_objects(pairs: "Pairs") -> list[dict[str, Any]]:
    return [{"class": name, "probability": value} for name, value in pairs]


def as_csv(
    out: TextIO, rows: Iterable[Row], files, models, names, unknown: bool, sets: float | None
) -> None:
    """The most probable classes of each image and, with `sets`, all classes of the set."""
    writer = csv.writer(out, lineterminator="\n")
    header = ["image", "model", "rank", "class", "probability"]
    writer.writerow(header + ["unknown"] * unknown + ["in_set"] * (sets is not None))
    for row in rows:
        members = row.set or []
        pairs = max(row.top, members, key=len)
        for rank, pair in enumerate(pairs, start=1):
            values: list[Any] = [row.image, row.model, rank, *pair]
            values += [row.unknown] * unknown + [pair in members] * (sets is not None)
            writer.writerow(map(csv_cell, values))


def as_table(
    out: TextIO, rows: Iterable[Row], files: Sequence[Path], models, names: Sequence[str], *asked
) -> None:
    known = names or [name for model in models for name in model.classifier.class_names]
    image_width = max(width(printable(file)) for file in files)
    model_width = max(width(printable(model.name)) for model in models)
    class_width = max(map(width, known))
    for row in rows:
        classes = "   ".join(
            f"{padded(name, class_width)} {100 * value:5.1f} %" for name, value in row.top
        )
        if row.set is not None:
            more = f", and {len(row.set) - SHOWN} more" * (len(row.set) > SHOWN)
            classes = f"{{{', '.join(name for name, _ in row.set[:SHOWN])}{more}}}"
        if row.unknown is not None:
            classes = f"{'unknown' if row.unknown else '':<7}  {classes}"
        out.write(
            f"{padded(printable(row.image), image_width)}  "
            f"{padded(printable(row.model), model_width)}  {classes}\n"
        )
