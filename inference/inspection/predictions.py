"""The command `python tools/inspect.py predictions`: what the predictions of a run's test show, as
pictures.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import RUN_CONFIG_FILE, new_folder, write_text
from common.names import printable
from common.pages import render, save_picture
from common.results import read_results
from common.start import Parser, path
from configs.files import read_yaml
from measures import predictions
from measures.outcomes import MOST, Outcome, draw_confusion, draw_pairs, draw_reliability, draw_risk
from measures.results import summary_line


def parse(argv: list[str] | None) -> Namespace:
    parser = Parser(
        description="Draw what a test predicted: reliability, risk against coverage, accuracy by "
        "class, and confused classes with their images.",
        epilog="The folder gets predictions.html, and the pictures as PNG and SVG.",
    )
    parser.add_argument("run", type=path, metavar="RUN", help="output folder of a finished run")
    parser.add_argument(
        "--output", type=path, required=True, metavar="FOLDER", help="a new folder, or an empty one"
    )
    parser.add_argument(
        "--root", type=path, help="folder of the datasets (default: that of the run)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    outcome = Outcome(predictions.read_predictions(args.run))
    results = read_results(args.run)
    assert results is not None  # `predictions.read` checks it
    title, about = printable(summary_line(results)).split(": ", 1)
    with new_folder(args.output) as folder:
        shown = [
            (name, caption, save_picture(figure, folder / name))
            for name, caption, figure in pictures(outcome, args.root or root_of(args.run))
        ]
        template = Path(__file__).with_name("outcomes.html")
        page = render(template, title=title, about=about, pictures=shown)
        write_text(folder / "predictions.html", page)
    print(f"Written: predictions.html and pictures to {args.output}")


def root_of(run: Path) -> Path:
    """The folder of the datasets of a run."""
    settings = read_yaml(run / RUN_CONFIG_FILE).get("DATASET")
    root = settings.get("ROOT", "") if isinstance(settings, dict) else ""
    return Path(os.path.expanduser(str(root)))


def pictures(outcome: Outcome, root: Path) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of each picture that the predictions allow."""

    def drawn(height: float, draw: Callable, content: Any) -> Figure:
        figure = Figure(figsize=(4, height), layout="constrained")
        draw(figure.subplots(), content)
        return figure

    caption = (
        "Accuracy against confidence in 15 bins. Below the diagonal the model is too confident. "
        "Bins with fewer than ten images are left out."
    )
    yield "reliability", caption, drawn(4, draw_reliability, outcome.bins)
    caption = (
        "The error on the images that the model is most sure of, against their share: at 50%, "
        "the error if it answered only the half of the images that it is most sure of."
    )
    yield "risk_and_coverage", caption, drawn(3.4, draw_risk, outcome.risks)
    recalls = outcome.recalls()
    caption = "Sorted, the worst class at the top."
    if len(recalls) > MOST:
        recalls = [*recalls[: MOST // 2], *recalls[-MOST // 2 :]]
        caption += f" The {MOST // 2} worst and best classes."
    yield "accuracy_by_class", caption, drawn(0.8 + 0.2 * len(recalls), draw_recalls, recalls)
    caption = "Classes by predicted classes, in % of the images of a class."
    yield "confusion", caption, drawn(4.2, draw_confusion, outcome)
    if pairs := outcome.pairs():
        caption = (
            "The most frequent wrong predictions: class, predicted class, how many of the images "
            "of the class, and the images with the highest probability."
        )
        yield "confused_pairs", caption, draw_pairs(pairs, root)


def draw_recalls(ax: Axes, recalls: list[tuple[str, float]]) -> None:
    """The accuracy of each class, the first at the top."""
    names, values = zip(*recalls, strict=True)
    ax.barh(range(len(names)), values, color="0.75", edgecolor="black")
    ax.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    ax.set(xlabel="accuracy (%)", xlim=(0, 100))
    ax.invert_yaxis()
