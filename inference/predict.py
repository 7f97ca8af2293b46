"""The command `python tools/predict.py`: the most probable classes of images."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any, TextIO

from common.errors import UsageError
from common.start import Parser, at_least, path, required_packages

from .addresses import Address, Image, source
from .arguments import (
    MODELS,
    add_calibration_options,
    add_image_options,
    add_model_options,
    check_exists,
    load_options,
)
from .bank import Bank, BankFiles, is_bank
from .formats import (
    FORMS,
    PRINTED,
    Layout,
    arrow_table,
    as_table,
    form_of,
    parts,
    write,
)
from .options import LoadOptions, PredictOptions
from .shard_files import REQUIREMENTS, ROWS, Output, write_tables
from .sharding import WHOLE, add_shard_options, end, facts_of, write_shards
from .sources import LISTS, images_in
from .tars import expanded, is_tar, members_in

if TYPE_CHECKING:
    from .batches import AnswerRow
    from .classifier import PromptedClassifier
    from .load import Model


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Print the most probable classes of images.",
        usage="%(prog)s [options] MODEL [...] IMAGE|FOLDER|LIST|TAR [...] [--classes NAME ...]",
        epilog=f"{MODELS} A LIST is a .txt, .csv or .parquet file with paths. A folder of "
        "tools/embed.py takes the place of its images. Several models are compared. Without a "
        "MODEL, --backbone and --classes give zero-shot CLIP. The exit status is 1 if some of the "
        "images could not be read (they are reported and skipped), and 2 after another error.",
    )
    add = parser.add_argument
    add(
        "paths", type=source, nargs="*", metavar="PATH", help="models first, then images or folders"
    )
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
    text = (
        f"write the answers to a file, whose ending says the form: {', '.join(FORMS)}; or, if it "
        "ends with /, to a folder, in a Parquet file for 10,000 images: the same command again "
        "continues with the file that is missing"
    )
    add("--to", "--results-file", type=destination, metavar="FILE|FOLDER/", help=text)
    text = (
        "answer for all images together by this method (TransCLIP, StatA, EMDirichlet, "
        "HardEMDirichlet or ZLaP) over zero-shot CLIP or, by the first two, over the answers of a "
        "MODEL: each answer depends on all images"
    )
    add("--transductive", default="", metavar="METHOD", help=text)
    add_shard_options(parser)
    return parser.parse_intermixed_args(argv)  # options may stand between the model and the images


class Folder(PosixPath):
    """A path that ends with a slash."""


def destination(text: str) -> Path:
    """The argparse type of a file or, with a slash at its end, of a folder."""
    return Folder(path(text)) if text.endswith("/") else path(text)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if not args.paths:
        raise UsageError("no model and no images are given", "name them before --classes")
    if args.transductive and (args.unknown or args.sets or isinstance(args.to, Folder)):
        fault = "--transductive has no calibration and no files of 10,000 images"
        raise UsageError(fault, "leave out --unknown and --sets, and name a file by --to")
    if isinstance(args.to, Folder):
        answer_in_shards(args, argv)
        return
    if args.shard != WHOLE or args.engine:
        fault = "--engine is" if args.engine else "--shard is"
        raise UsageError(f"{fault} for answers in a folder", "end --to with /")
    for file in args.paths:
        if file.suffix.removeprefix(".") in FORMS and not file.exists():
            raise UsageError(f"there is no {file}", f"to write the answers there: --to {file}")
    form = form_of(args.to, args.format)
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):  # what libraries print must not get among the results
        how, options = options_of(args)
        opened, files = models_and_images(args.paths, how, options)
        skipped = answer(opened, files, options, form, args.to or stdout)
    if args.to:
        print(f"Written: {args.to}")
    if skipped:
        sys.exit(1)


def answer_in_shards(args: argparse.Namespace, words: Sequence[str] | None) -> None:
    """Write the answers to files in a folder."""
    if args.format not in ("", "parquet"):
        raise UsageError(f"{args.to}/ gets Parquet, not {args.format}", "leave the format out")
    with required_packages(REQUIREMENTS):
        import pyarrow  # noqa: F401 - before anything is computed
    with redirect_stdout(sys.stderr):
        output = output_of_args(args)
        errors = write_shards(output, args.paths[output.first_image :], args, words)
    end(args.to, errors)


def output_of(words: Sequence[str]) -> "Answers":
    """The output of a command with these words, in a folder."""
    return output_of_args(parse([*words]))


def output_of_args(args: argparse.Namespace) -> "Answers":
    how, options = options_of(args)
    with required_packages():
        from .load import open_models
    number = number_of_models(args.paths, how)
    models = args.paths[:number]
    opened = open_models(models, how)
    check_banks(opened, args.paths[number:])
    prepare_models(opened, options)
    facts = facts_of_answers(models, opened, how, options)
    output = Answers(args.to, opened, options, facts)
    output.first_image = number
    return output


def facts_of_answers(
    paths: Sequence[Path], opened: Sequence["Model"], how: LoadOptions, options: PredictOptions
) -> dict[str, Any]:
    from .calibrated import sha256_of

    models = []
    files: list[Path | None] = [*paths] or [None]
    for file, (name, classifier) in zip(files, opened, strict=True):
        calibration = classifier.calibration
        content = {
            "description": asdict(classifier.description),
            "calibration": calibration.to_json() if calibration else None,
        }
        facts = facts_of(classifier, file, how)
        models.append(facts | {"name": name, "content_sha256": sha256_of(content)})
    return {
        "form": 2,
        "models": models,
        "class_names": list(options.class_names or ()),
        "topk": options.topk,
        "unknown": options.unknown,
        "sets": options.sets,
    }


class Answers(Output):
    """Parquet files with a row for each image and model, and one for an image with an error."""

    name = "predict"
    content = "answers"

    def __init__(
        self,
        folder: Path,
        models: Sequence["Model"],
        options: PredictOptions,
        facts: dict[str, Any],
    ):
        super().__init__(folder, facts)
        self.models = models
        self.options = options
        self.layout = replace(layout_of(models, options), errors=True)

    def write(self, number: int, images: Sequence[Image], facts: bytes) -> None:
        (file,) = self.files(number)
        tables = (arrow_table(part, self.layout) for part in parts(self.rows(images), ROWS))
        write_tables(file, arrow_table([], self.layout).schema, tables, {self.name: facts})

    def rows(self, images: Sequence[Image]) -> Iterator["AnswerRow"]:
        from .batches import predict_files

        for part in predict_files(self.models, images, self.options):
            yield from part
            errors = sum("error" in row for row in part)
            self.advance(errors + (len(part) - errors) // len(self.models), errors)


def options_of(args: argparse.Namespace) -> tuple[LoadOptions, PredictOptions]:
    """How to load the models of the command, and what they answer for each image."""
    how = load_options(args, calibration=True if args.unknown or args.sets else None)
    check_exists(next(expanded(args.paths[0])), "model or image" if args.backbone else "model")
    options = PredictOptions(
        class_names=list(how.class_names) or None,
        topk=args.topk,
        unknown=args.unknown,
        sets=args.sets,
        batch_size=args.batch_size,
        transductive=args.transductive,
    )
    return how, options


def answer(
    opened: list["Model"], files: Any, options: PredictOptions, form: str, out: Path | TextIO
) -> list[str]:
    """Write the answers to a file, or print them; returns the faults of images that could not be
    read.
    """
    from .batches import predict_files

    prepare_models(opened, options)
    if options.transductive:
        from .transductive import Together

        joint = Together(opened, options)
        opened = [joint.model]
        batches = joint.predict_files(files)
    else:
        batches = predict_files(opened, files, options)
    skipped: list[str] = []
    printed = sys.stdout if isinstance(out, Path) else out
    rows = readable_rows(batches, skipped, len(files), printed)
    if isinstance(out, Path):
        write(out, form, rows, layout_of(opened, options))
    elif form:
        PRINTED[form](out, rows, layout_of(opened, options))
    else:
        as_table(out, rows, files, opened, options.class_names)
    return skipped


def prepare_models(opened: Sequence["Model"], options: PredictOptions) -> None:
    """Check that the models can answer, and compute what all images share."""
    from .batches import prepare

    names = options.class_names
    for model in opened:
        model.classifier.check_asked(options.unknown, options.sets, names)
        note_unknown(model.classifier, names or model.classifier.class_names)
    prepare(opened, names)


def note_unknown(classifier: "PromptedClassifier", names: Sequence[str]) -> None:
    """Print of which class names the small CLIP has read no word."""
    from datasets.small_world.drawing import unknown_to_small

    if classifier.method != "ZeroshotCLIP" or classifier.backbone != "small":
        return
    if unknown := unknown_to_small(names):
        count = f"{len(unknown)} of {len(names)} class names, such as {unknown[0]!r}"
        print(f"The backbone small has read no word of {count}: its answers do not mean these")


def layout_of(models: Sequence["Model"], options: PredictOptions) -> Layout:
    """The columns of the rows of models."""
    most = max(len(options.class_names or model.classifier.class_names) for model in models)
    joint = bool(options.transductive)
    return Layout(
        min(options.topk, most), options.unknown, options.sets is not None, together=joint
    )


def models_and_images(
    paths: Sequence[Any], how: LoadOptions, options: PredictOptions
) -> tuple[list["Model"], Any]:
    """The models that come first among the paths, and the image files of the others, or the files
    of their banks.
    """
    with required_packages():
        from .images import find_images, one_thread
        from .load import open_models
    number = number_of_models(paths, how)
    places = paths[number:]
    banks = [Bank(place) for place in places if is_bank(place)]
    if banks and options.transductive:
        raise UsageError("--transductive reads images, and no bank", "give the images of the bank")
    if banks and len(banks) < len(places):
        raise UsageError("banks and images are given", "name one kind, or end --to with /")
    files: Any = BankFiles([file for bank in banks for file in bank.files])
    if banks and not len(files):
        raise UsageError("the bank has no images", "embed some, or give another folder")
    if not banks:
        files = [image for place in places for image in images_of(place)]
        files = files or find_images([])  # which says that there are none
    with one_thread():
        opened = open_models(paths[:number], how)
    check_banks(opened, places)
    return opened, files


def images_of(place: Path | Address) -> list[Image]:
    """The images of a folder, a list or a tar, or the image itself."""
    from .images import find_images

    if is_tar(place):
        return [image for tar in expanded(place) for image in members_in(tar)]
    if place.suffix.lower() in LISTS:
        return [*images_in([place])]
    return find_images([place])


def check_banks(opened: Sequence["Model"], places: Sequence[Path]) -> None:
    """Raise UsageError unless the models read the features of all banks among the places."""
    for place in filter(is_bank, places):
        for model in opened:
            Bank(place).check(model.classifier)


def number_of_models(paths: Sequence[Any], how: LoadOptions) -> int:
    """How many of the paths are models; the others are images."""
    with required_packages():
        from .load import kind_of, read_model

    is_image = (isinstance(one, Address) or not kind_of(one) for one in paths)
    number = next((n for n, is_one in enumerate(is_image) if is_one), len(paths))
    if not number and not how.backbone:
        read_model(paths[0], how)  # which says why it is not a model
    return number


def readable_rows(
    batches: Iterable[list["AnswerRow"]], skipped: list[str], number: int, out: TextIO
) -> Iterator["AnswerRow"]:
    """The rows of all images. Images that cannot be read are `skipped`, and reported on stderr.

    Args:
        number: of the images.
        out: where the rows are written.

    Raises:
        UsageError: no image could be read.
    """
    from tqdm import tqdm

    with tqdm(total=number, desc="predicting", unit="image", disable=None) as bar:
        for rows in batches:
            faults = [row["error"] for row in rows if "error" in row]
            if faults and number == 1:
                raise UsageError(faults[0])
            skipped += faults
            with bar.external_write_mode(out):
                for fault in faults:
                    print(f"skipped: {fault}", file=sys.stderr)
                yield from (row for row in rows if "error" not in row)
                out.flush()
            bar.update(len({row["image"] for row in rows}))
    if len(skipped) == number:
        raise UsageError(f"none of the {number} images could be read", "see above")
