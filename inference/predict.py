"""The command `python tools/predict.py`: the most probable classes of images."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from common.errors import UsageError
from common.start import Parser, at_least, path, required_packages

from .arguments import (
    MODELS,
    add_calibration_options,
    add_image_options,
    add_model_options,
    check_exists,
    load_options,
)
from .options import LoadOptions
from .tables import FORMS, PRINTED, Layout, as_table, form_of, write

if TYPE_CHECKING:
    from .models import Model

Row = dict[str, Any]  # of `batches.predict_files`


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Print the most probable classes of images.",
        usage="%(prog)s [options] MODEL [MODEL ...] IMAGE|FOLDER [...] [--classes NAME ...]",
        epilog=f"{MODELS} Several models are compared. Without a MODEL, --backbone and --classes "
        "give "
        "zero-shot CLIP. The exit status is 1 if some of the images could not be read (they are "
        "reported and skipped), "
        "and 2 after another error.",
    )
    add = parser.add_argument
    add("paths", type=path, nargs="*", metavar="PATH", help="models first, then images or folders")
    add_model_options(parser)
    add_image_options(parser)
    text = "number of classes to print for each image (default: 5)"
    add("--topk", type=at_least(1), default=5, metavar="K", help=text)
    text = "images at a time (default: 100)"
    add("--batch-size", type=at_least(1), default=100, metavar="N", help=text)
    add_calibration_options(parser)
    forms = parser.add_mutually_exclusive_group()
    text = "print this form, or write it to the file of --to; csv has a row for each image"
    forms.add_argument("--format", "--results-format", choices=FORMS, default="", help=text)
    for form in ("json", "csv"):
        options: dict[str, Any] = {"action": "store_const", "const": form, "dest": "format"}
        forms.add_argument(f"--{form}", **options, help=f"the same as --format {form}")
    text = f"write the answers to a file, whose ending says the form: {', '.join(FORMS)}"
    add("--to", "--results-file", type=path, metavar="FILE", help=text)
    return parser.parse_intermixed_args(argv)  # options may stand between the model and the images


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if not args.paths:
        raise UsageError("no model and no images are given", "name them before --classes")
    for file in args.paths:
        if file.suffix.removeprefix(".") in FORMS and not file.is_dir():
            raise UsageError(f"{file} is no image", f"to write the answers there: --to {file}")
    form = form_of(args.to, args.format)
    options = load_options(args, calibration=True if args.unknown or args.sets else None)
    check_exists(args.paths[0], "model or image" if args.backbone else "model")
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):  # what libraries print must not get among the results
        skipped = answer(args, options, form, stdout)
    if args.to:
        print(f"Written: {args.to}")
    if skipped:
        sys.exit(1)


def answer(args: argparse.Namespace, options: LoadOptions, form: str, out: TextIO) -> list[str]:
    """Write or print the answers; returns the faults of images that could not be read."""
    with required_packages():
        from .batches import predict_files, prepare
    opened, files = models_and_images(args, options)
    names = list(options.class_names) or None
    for model in opened:
        model.classifier.check_asked(args.unknown, args.sets, names)
    prepare(opened, names)
    skipped: list[str] = []
    asked = args.batch_size, args.topk, args.unknown, args.sets
    rows = rows_of(predict_files(opened, files, names, *asked), skipped, len(files), out)
    if not form:
        as_table(out, rows, files, opened, names)
        return skipped
    layout = layout_of(args, [names or model.classifier.class_names for model in opened])
    if args.to:
        write(args.to, form, rows, layout)
    else:
        PRINTED[form](out, rows, layout)
    return skipped


def layout_of(args: argparse.Namespace, class_lists: Sequence[Sequence[str]]) -> Layout:
    """What the rows of models with these classes have."""
    most = max(map(len, class_lists))
    return Layout(min(args.topk, most), args.unknown, args.sets is not None)


def models_and_images(
    args: argparse.Namespace, options: LoadOptions
) -> tuple[list["Model"], list[Path]]:
    """The models that come first among the paths, and the image files of the others."""
    from . import images, models

    is_image = (not models.kind_of(path) for path in args.paths)
    number = next((n for n, is_one in enumerate(is_image) if is_one), len(args.paths))
    if not number and not args.backbone:
        models.read_model(args.paths[0], options)  # which says why it is not a model
    files = images.find_images(args.paths[number:])
    with images.one_thread():
        return models.open_models(args.paths[:number], options), files


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
