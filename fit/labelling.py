"""The command `python tools/label.py`: which images of a pool to label next."""

import argparse
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UsageError, check_name
from common.files import write_text
from common.names import csv_cell, plain, printable
from common.start import Parser, any_seed, at_least, path, required_packages
from inference.arguments import add_image_options, add_model_options, check_exists, load_options

from .images import ASKED, rows_of

COLUMNS = "path", "label", "asked", "guess"
DRAWN = 4  # of so many images, one is drawn at random
Line = Mapping[str, str | None]  # of the CSV file


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Choose the images of a pool whose labels help most, and write them to a CSV "
        "file with an empty column label to fill in. tools/fit.py reads the file; the same "
        "command again asks for more.",
        epilog="POOL is a folder, a list (.txt, or .csv or .parquet with a column path) or a bank, "
        "a folder of tools/embed.py. The last quarter of a request is drawn at random and marked "
        "in the column asked: tools/fit.py learns from all labels, and estimates and calibrates "
        "on these alone. Images of one scene are asked for once.",
    )
    add = parser.add_argument
    add("pool", type=path, metavar="POOL", help="images without labels")
    add("--ask", type=at_least(1), required=True, metavar="B", help="how many labels to ask for")
    add("--to", type=path, required=True, metavar="CSV", help="new, or with the labels so far")
    text = "whose answers say what is uncertain (default: zero-shot CLIP of --backbone, --classes)"
    add("--model", type=path, metavar="MODEL", help=text)
    text = "typiclust, herding, uherding, random, pseudo (default: typical-then-uncertain)"
    add("--method", dest="rule", default="typical-then-uncertain", metavar="NAME", help=text)
    add("--seed", type=any_seed, default=1, help="of k-means and of random draws (default: 1)")
    add_model_options(parser)
    add_image_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    options = load_options(args)
    if args.model:
        check_exists(args.model)
    if not args.pool.exists():
        raise UsageError(f"there is no pool {args.pool}", "give a folder, a list or a bank")
    lines = lines_of(args.to)
    with required_packages():
        from inference.models import load
        from measures.labelling import METHODS

        from .pool import UnlabelledPool
    check_name(args.rule, METHODS, "method")
    classifier = load(args.model, options)
    labels = {os.path.abspath(args.to.parent / row["path"]): row["label"] for row in lines}
    check_labels(labels, classifier.class_names, args.to)
    pool = UnlabelledPool.read(args.pool, classifier, args.model)
    asked = pool.ask(labels, args.ask, args.ask // DRAWN, args.seed, args.rule)
    rows = [
        {"path": image, "label": "", "asked": ASKED[is_drawn], "guess": guess}
        for image, guess, is_drawn in asked
    ]
    write_lines(args.to, [*lines, *rows])
    for note in pool.notes:
        print(printable(note))
    drawn = sum(is_drawn for _, _, is_drawn in asked)
    print(f"Written: {args.to}, with {len(rows):,} images to label, {drawn:,} of them at random")
    print(f"Fill in the column label, then: python tools/fit.py {args.to} --to MODEL")


def lines_of(file: Path) -> list[dict[str, str]]:
    """The lines of an earlier call, all of which have a label by now; none if there is no file.

    Raises:
        UsageError: the file has other columns, or a line without a label.
    """
    if not file.exists():
        return []
    rows: list[Line] = [row for _, row in rows_of(file)]
    if not rows or not {"path", "label", "asked"} <= set(rows[0]):
        what = f"{file} has no columns path, label and asked"
        raise UsageError(what, "choose another file for --to", file)
    lines = [{key: row[key] or "" for key in row if key} for row in rows if row["path"]]
    missing = [line["path"] for line in lines if not line["label"].strip()]
    if missing:
        what = f"{len(missing):,} lines of {file} have no label, such as that of {missing[0]}"
        raise UsageError(what, "fill them in, or delete these lines", file)
    return lines


def check_labels(labels: Mapping[str, str], names: Sequence[str], file: Path) -> None:
    """Raise UsageError for a label that is no class."""
    known = [" ".join(plain(name).split()) for name in names]
    for label in labels.values():
        check_name(" ".join(plain(label).split()), known, f"class in {file}")


def write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the file completely or not at all; columns that the user has added stay."""
    columns = list(dict.fromkeys([*COLUMNS, *(key for line in lines for key in line)]))
    content = io.StringIO()
    writer = csv.DictWriter(content, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: csv_cell(value) for key, value in line.items()})
    write_text(file, content.getvalue())
