"""The command `python tools/label.py`: which images of a pool to label next."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UsageError, check_name
from common.files import new_folder
from common.lock import locked
from common.names import as_class_name, printable
from common.start import Parser, any_seed, at_least, path, required_packages
from inference.arguments import add_image_options, add_model_options, check_exists, load_options
from inference.bank import is_bank
from inference.options import LoadOptions
from inference.serving.command import OF_API, add_address_options

from ..read_images import ASKED, unlabelled_in
from .label_file import Line, check_done, check_labels, image_of, lines_of, write_lines

if TYPE_CHECKING:
    from inference.classifier import PromptedClassifier


DRAWN = 4  # of so many images, one is drawn at random
THUMBNAIL = 320  # pixels


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Choose the images of a pool whose labels help most, and write them to a CSV "
        "file with an empty column label to fill in, by hand or on a page. tools/fit.py reads the "
        "file; the same command again asks for more.",
        epilog="POOL is a folder, a list (.txt, or .csv or .parquet with a column path) or a bank, "
        "a folder of tools/embed.py. The last quarter of a request is drawn at random and marked "
        "in the column asked: tools/fit.py learns from all labels, and estimates and calibrates "
        "on these alone. Near-copies are asked for once. The page has no password: whoever "
        "reaches the host and port can use it.",
    )
    add = parser.add_argument
    add("pool", type=path, metavar="POOL", help="images without labels")
    text = "how many labels to ask for"
    add("--count", dest="ask", type=at_least(1), required=True, metavar="B", help=text)
    add("--to", type=path, required=True, metavar="CSV", help="new, or with the labels so far")
    text = "whose answers are the guesses (default: zero-shot CLIP of --backbone and --classes)"
    add("--model", type=path, metavar="MODEL", help=text)
    text = "whitened-herding or random (default: whitened-herding)"
    add("--method", dest="rule", default="whitened-herding", metavar="NAME", help=text)
    add("--seed", type=any_seed, default=1, help="of random draws (default: 1)")
    ways = parser.add_mutually_exclusive_group()
    text = "label in the browser; each round ends with a fit of heads (of asked.csv: asked-model/)"
    ways.add_argument("--page", action="store_true", help=text)
    text = "new folder for small pictures of the images, numbered as in the column thumbnail"
    ways.add_argument("--thumbnails", type=path, metavar="DIR", help=text)
    add_address_options(parser)
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
    with required_packages():
        from inference.load import load
        from measures.labelling import METHODS
    check_name(args.rule, METHODS, "method")
    with locked(args.to.absolute().parent, option="--to", name=f".{args.to.name}.lock"):
        lines = lines_of(args.to)
        if not args.page:
            check_done(lines, args.to)
        classifier = load(args.model, options)
        check_labels(lines, classifier.class_names, args.to)
        if args.page:
            label_on_page(args, options, classifier)
            return
        ask(args, classifier)
    print(f"Fill in the column label, then: python tools/fit.py {args.to} --to MODEL")


def ask(args: argparse.Namespace, classifier: "PromptedClassifier") -> None:
    """Add the images to label next to the file."""
    from .pool import UnlabelledPool

    lines = lines_of(args.to)
    labels = {image_of(line, args.to): line["label"] for line in lines}
    pool = UnlabelledPool.read(args.pool, classifier, args.model)
    budget = args.ask
    if args.page:  # the last round is smaller
        budget = min(budget, pool.left(labels))
        if not budget:
            raise UsageError("each group of the pool has a label", "this was the last round")
    asked = pool.ask(labels, budget, budget // DRAWN, args.seed, args.rule)
    rows = [
        {"path": one.path, "label": "", "asked": ASKED[one.is_drawn], "guess": one.guess}
        for one in asked
    ]
    with thumbnails(args.thumbnails, rows, len(lines), args.max_pixels):
        write_lines(args.to, [*lines, *rows])
    for note in pool.notes:
        print(printable(note))
    drawn = sum(one.is_drawn for one in asked)
    print(f"Written: {args.to}, with {len(rows):,} images to label, {drawn:,} of them at random")


@contextmanager
def thumbnails(
    folder: Path | None, rows: Sequence[Line], first: int, max_pixels: int | None = None
) -> Iterator[None]:
    """Small pictures of images, in a folder if the body succeeds; the column thumbnail gets their
    names before it.

    Args:
        folder: a new one; None for no pictures.
        first: the number of lines before these.
    """
    from inference.images import jpeg_of

    if folder is None:
        yield
        return
    with new_folder(folder) as stage:
        for number, row in enumerate(rows, first + 1):
            try:
                content = jpeg_of(row["path"], THUMBNAIL, max_pixels)
            except UsageError as error:  # of a bank, whose images may be gone
                print(printable(f"No thumbnail: {error}"))
                continue
            row["thumbnail"] = f"{number:05}.jpg"
            (stage / row["thumbnail"]).write_bytes(content)
        yield


def label_on_page(
    args: argparse.Namespace, options: LoadOptions, classifier: "PromptedClassifier"
) -> None:
    """Serve the page until Ctrl-C."""
    with required_packages(OF_API):
        from inference.serving.server import Server, address_of, serve

        from .application import application
    from .rounds import RoundPlan, Rounds

    # Each once, as a fit reads them
    names = list(dict.fromkeys(map(as_class_name, classifier.class_names)))
    if not lines_of(args.to):
        ask(args, classifier)
    work = Work(args, options, classifier)
    images = [os.path.abspath(photo.path) for photo in unlabelled_in(args.pool)]
    plan = RoundPlan(args.to, names, images, args.ask, work.model, args.max_pixels)
    rounds = Rounds(plan, work.fit, work.ask)
    where = address_of(args.host, args.port)
    try:
        server = Server(application(rounds), args.host, grace=0)
        serve(server, args.host, args.port, f"Open http://{where}/ in a browser.")
    finally:
        rounds.closed = True
        work.apart.end()
    print(f"Labels: {args.to}")


class Work:
    """What happens between two rounds.

    Args:
        classifier: asks until there is a fit.
    """

    def __init__(
        self, args: argparse.Namespace, options: LoadOptions, classifier: "PromptedClassifier"
    ):
        from .apart import FitApart

        self.args = args
        self.options = options
        self.classifier = classifier
        self.model = args.to.with_name(f"{args.to.stem}-model")
        self.apart = FitApart()

    @property
    def backbone(self) -> str:
        return self.options.backbone or self.classifier.backbone

    def fit(self) -> None:
        """Learn from the labels so far; UsageError if that fails."""
        place = [self.args.to]
        if is_bank(self.args.pool):
            place = [self.args.pool, "--labels", self.args.to]
        words = ["--to", self.model, "--backbone", self.backbone, "--minutes", 0]
        words += ["--seed", self.args.seed, "--device", self.options.device]
        if self.options.sentences:
            words += ["--sentences", self.options.sentences]
        self.apart.run(list(map(str, [*place, *words])))

    def ask(self) -> None:
        """Ask for the next images by the last fit, or as at the start if there was none."""
        from inference.artefact import EXPORT_CONFIG_FILE
        from inference.load import load

        args = self.args
        classifier = self.classifier
        if (self.model / EXPORT_CONFIG_FILE).is_file():
            own = LoadOptions(
                backbone=self.backbone,
                device=self.options.device,
                max_pixels=self.options.max_pixels,
            )
            classifier = load(self.model, own, classifier.clip)
            args = argparse.Namespace(**vars(args) | {"model": self.model})
        ask(args, classifier)
