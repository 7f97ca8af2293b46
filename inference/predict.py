"""The command `python tools/predict.py`: the most probable classes of images."""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

from common.errors import UsageError
from common.names import csv_cell, printable
from common.start import Parser, at_least, path, required_packages

from .arguments import MODELS, add_model_options, check_exists, given_class_names

Row = tuple[str, str, list[tuple[str, float]]]  # image, model, (class, probability)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Print the most probable classes of images.",
        usage="predict.py [options] MODEL [MODEL ...] IMAGE|FOLDER [...] [--classes NAME ...]",
        epilog=f"{MODELS} Several models are compared. Without a MODEL, --backbone and --classes give "
        "zero-shot CLIP. The exit status is 1 if some of the images could not be read (they are reported and skipped), "
        "and 2 after another error.",
    )
    add = parser.add_argument
    add("paths", type=path, nargs="+", metavar="PATH", help="models first, then images or folders")
    add_model_options(parser)
    add(
        "--topk",
        type=at_least(1),
        default=5,
        metavar="K",
        help="number of classes to print for each image (default: 5)",
    )
    add("--batch-size", type=at_least(1), default=100, metavar="N", help="images at a time (default: 100)")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_const", dest="form", const=as_json, help="print JSON and nothing else")
    forms.add_argument("--csv", action="store_const", dest="form", const=as_csv, help="print CSV, a row for each class")
    parser.set_defaults(form=as_table)
    return parser.parse_intermixed_args(argv)  # options may stand between the model and the images


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    names, stdout = given_class_names(args), sys.stdout
    check_exists(args.paths[0], "model or image" if args.backbone else "model")
    with redirect_stdout(sys.stderr):  # what libraries print must not get among the results
        with required_packages():
            from tqdm import tqdm

            from . import images, models
        number = next((n for n, path in enumerate(args.paths) if not models.kind_of(path)), len(args.paths))
        if not number and not args.backbone:
            models.read_model(args.paths[0], args)  # which says why it is not a model
        files = images.find_images(args.paths[number:])
        with images.one_thread():
            opened = models.open_models(args.paths[:number], args, names)
        predict = images.Predictor(opened, names, args.topk)
        skipped = 0

        def rows() -> Iterator[Row]:
            """The rows of all images. Images that cannot be read are reported on stderr."""
            nonlocal skipped
            with tqdm(total=len(files), desc="predicting", unit="image", disable=None) as bar:
                for found, errors, read in predict(files, args.batch_size):
                    if errors and len(files) == 1:
                        raise UsageError(errors[0])
                    with bar.external_write_mode(stdout):
                        for error in errors:
                            print(f"skipped: {error}", file=sys.stderr)
                        yield from found
                        stdout.flush()
                    bar.update(read + len(errors))
                    skipped += len(errors)
            if skipped == len(files):
                raise UsageError(f"none of the {len(files)} images could be read", "see above")

        args.form(stdout, rows(), files, opened, names)
    if skipped:
        sys.exit(1)


def as_json(out: TextIO, rows: Iterable[Row], *layout) -> None:
    before = "[\n"
    for image, model, top in rows:
        classes = [{"class": name, "probability": value} for name, value in top]
        out.write(f"{before} {json.dumps({'image': image, 'model': model, 'top': classes})}")
        before = ",\n"
    out.write("\n]\n")


def as_csv(out: TextIO, rows: Iterable[Row], *layout) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image", "model", "rank", "class", "probability"))
    for image, model, top in rows:
        for rank, pair in enumerate(top, start=1):
            writer.writerow(map(csv_cell, (image, model, rank, *pair)))


def as_table(out: TextIO, rows: Iterable[Row], files: Sequence[Path], models, names: Sequence[str]) -> None:
    known = names or [name for model in models for name in model.classifier.class_names]
    image_width = max(len(printable(file)) for file in files)
    model_width, class_width = max(len(printable(model.name)) for model in models), max(map(len, known))
    for image, model, top in rows:
        classes = "   ".join(f"{name:<{class_width}} {100 * value:5.1f} %" for name, value in top)
        out.write(f"{printable(image):<{image_width}}  {printable(model):<{model_width}}  {classes}\n")
