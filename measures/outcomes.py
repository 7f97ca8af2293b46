"""Pictures and figures of predictions: reliability, risk against coverage, accuracy by class, and
confused classes.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dassl.utils import read_image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.files import replacing
from common.names import printable
from common.pages import all_letters

from .metrics import BINS

COVERAGES = np.arange(1, 101)  # in %
FEW = 10  # images: a bin with fewer is not drawn
# Confused pairs, images of each, and the size of an image
PAIRS = 5
EXAMPLES = 3
PIXELS = 48
ANSWERS = 6  # images whose answers are drawn
# Letters of a name, and classes with a name in a picture
LONGEST = 24
MOST = 40
# Cells of a side of the picture of labels x predictions: one has several classes if there are more
SIDE = 1000
# Of bars, light enough for black words
RIGHT = "#8fc99a"
WRONG = "#d5d5d5"
Array = NDArray[Any]


class Pair(NamedTuple):
    """Images of one class that are predicted to be another one."""

    label: str
    predicted: str
    number: int  # of these images
    images: int  # of the class
    # Paths of those with the highest probability, below the folder of the datasets
    examples: list[str]


class Outcome:
    """The predictions of a test.

    Args:
        arrays: of a predictions.npz.

    Attributes:
        names: of the classes.
        tested: (2, images), label and prediction of each.
        bins: (3, BINS), number of images, sums of their confidence and of correct ones, in bins of
            confidence.
        risks: (100,), error in % on the most confident 1%, 2%, ...
        wrong: label, prediction, confidence and path of each image with a wrong prediction.
    """

    def __init__(self, arrays: Mapping[str, Array]):
        label = arrays["label"]
        predicted = arrays["classes"][:, 0]
        confidence = arrays["probabilities"][:, 0]
        correct = label == predicted
        self.names = list(map(str, arrays["class_names"]))
        self.tested = np.stack([label, predicted])
        place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        sums = [np.bincount(place, values, BINS) for values in (None, confidence, correct)]
        self.bins = np.stack(sums)
        order = np.argsort(-confidence, kind="stable")
        errors = np.cumsum(~correct[order]) / np.arange(1, len(label) + 1)
        self.risks = 100 * errors[(COVERAGES * len(label) - 1) // 100]
        columns = (label, predicted, confidence, arrays["image"])
        self.wrong = list(zip(*(column[~correct].tolist() for column in columns), strict=True))

    @property
    def images(self) -> Array:
        """(classes,): the number of images of each class."""
        return np.bincount(self.tested[0], minlength=len(self.names))

    def recalls(self) -> list[tuple[str, float]]:
        """Name and accuracy in % of each class that has images, ascending."""
        label, predicted = self.tested
        tested = np.flatnonzero(self.images)
        correct = np.bincount(label, label == predicted, len(self.names))
        values = 100 * correct[tested] / self.images[tested]
        return [
            (self.name(tested[place]), float(values[place]))
            for place in np.argsort(values, kind="stable")
        ]

    def pairs(self) -> list[Pair]:
        """The pairs of classes with the most wrong predictions, most first."""
        label, predicted = self.tested
        pairs, numbers = np.unique(self.tested[:, label != predicted], axis=1, return_counts=True)
        confused = []
        for place in np.argsort(-numbers, kind="stable")[:PAIRS]:
            one, other = pairs[:, place]
            names = self.name(one), self.name(other)
            number = int(numbers[place])
            examples = self.examples(one, other)
            confused.append(Pair(*names, number, int(self.images[one]), examples))
        return confused

    def examples(self, label: int, predicted: int) -> list[str]:
        """Paths of images with this wrong prediction, those with the highest probability first."""
        rows = [row for row in self.wrong if row[:2] == (label, predicted)]
        rows.sort(key=lambda row: -row[2])
        return list(dict.fromkeys(path for *_, path in rows if path))[:EXAMPLES]

    def name(self, label: int) -> str:
        name = printable(self.names[label])
        return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def draw_reliability(ax: Axes, bins: Array) -> None:
    """Accuracy against mean confidence in bins of confidence; below the diagonal a model is too
    confident.
    """
    count, confidence, correct = bins[:, bins[0] >= FEW]
    if not count.size:
        ax.text(50, 50, f"no bin has {FEW} images", ha="center", va="center")
    ax.plot([0, 100], [0, 100], color="0.7", linewidth=1, zorder=0)
    ax.plot(100 * confidence / count, 100 * correct / count, color="black", marker="o")
    ax.set(
        xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100), aspect="equal"
    )


def draw_risk(ax: Axes, risks: Array) -> None:
    """The error on the most confident images against their share."""
    highest = max(1.05 * float(risks.max()), 1)
    ax.plot(COVERAGES, risks, color="black")
    ax.set(
        xlabel="most confident images (%)",
        ylabel="error on them (%)",
        xlim=(0, 102),
        ylim=(0, highest),
    )


def draw_confusion(ax: Axes, outcome: Outcome) -> None:
    """Labels x predictions in % of the images of a class, dark where there are many."""
    number = len(outcome.names)
    cells = math.ceil(number / math.ceil(number / SIDE))
    confusion = np.zeros((cells, cells))
    np.add.at(confusion, tuple(outcome.tested * cells // number), 1)
    images = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    edges = (-0.5, number - 0.5, number - 0.5, -0.5)
    shares = ax.imshow(100 * confusion / images, cmap="Greys", vmin=0, vmax=100, extent=edges)
    ax.figure.colorbar(
        shares, cax=ax.inset_axes((1.04, 0, 0.05, 1)), label="images of the class (%)"
    )
    ax.set(xlabel="predicted class", ylabel="class")
    if number <= MOST:
        size = max(4, min(8, 160 / number))
        labels = [outcome.name(label) for label in range(number)]
        ax.set_xticks(range(number), labels, rotation=90, fontsize=size, parse_math=False)
        ax.set_yticks(range(number), labels, fontsize=size, parse_math=False)


def draw_pairs(pairs: Sequence[Pair], root: Path) -> Figure:
    """Confused pairs, one below another: a line with the classes, and the examples."""
    rows = len(pairs)
    figure = Figure(figsize=(4, 1.5 * rows))
    figure.subplots_adjust(
        left=0.02, right=0.98, bottom=0.05 / rows, top=1 - 0.2 / rows, hspace=0.3
    )
    grid = figure.subplots(rows, EXAMPLES, squeeze=False)
    for ax in grid.flat:
        ax.set_axis_off()
        ax.set_anchor("NW")  # under the title, whatever the shape of the image
    for axes, pair in zip(grid, pairs, strict=True):
        words = f"{pair.label} → {pair.predicted}: {pair.number} of {pair.images}"
        axes[0].text(0, 1.05, words, fontsize=8, transform=axes[0].transAxes, parse_math=False)
        for ax, path in zip(axes, pair.examples, strict=False):
            image = thumbnail(root, path)
            if image is not None:
                ax.imshow(image, interpolation="none")
    return figure


def thumbnail(root: Path, path: str) -> Any:
    """A test image of at most PIXELS x PIXELS; None if it is not there, or not below the folder of
    the datasets.
    """
    file = (root / path).absolute()
    if ".." in Path(path).parts or not file.is_relative_to(root.absolute()):
        return None
    try:
        image = read_image(str(file))
    except OSError:
        return None
    image.thumbnail((PIXELS, PIXELS))
    return image


def draw_answers(tests: Mapping[str, Mapping[str, Array]], root: Path, file: Path) -> None:
    """Draw the first test image of each of the first classes, with the three most likely classes of
    each test.

    `tests` are the arrays of the predictions.npz by title, all of the same images. The answers
    choose no image: they only sort the images, by the probability of the right class in the last
    test.
    """
    every = list(tests.values())
    rows = rows_to_draw(every[0], every[-1])
    figure, grid = grid_of(list(tests), len(rows))
    for place, row in enumerate(rows):
        draw_image(grid[place, 0], every[0], root, row)
        for axes, arrays in zip(grid[place, 1:], every, strict=True):
            draw_bars(axes, arrays, row)
    with replacing(file) as partial, all_letters():
        figure.savefig(partial, dpi=150, format="png")


def grid_of(titles: Sequence[str], rows: int) -> tuple[Figure, Any]:
    """A figure, and its axes (rows, 1 + titles): an image, and a column for each title."""
    size = (2.2 + 1.7 * len(titles), 0.4 + 1.15 * rows)
    figure = Figure(figsize=size, layout="constrained")
    widths = (1, *[1.6] * len(titles))
    grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for axes, title in zip(grid[0, 1:], titles, strict=True):
        axes.set_title(title, fontsize=10)
    return figure, grid


def draw_image(axes: Axes, arrays: Mapping[str, Array], root: Path, row: int) -> None:
    """A test image over the name of its class."""
    axes.imshow(read_image(root / arrays["image"][row]))
    name = arrays["class_names"][arrays["label"][row]]
    axes.set_xlabel(textwrap.fill(name, 14), fontsize=9)
    axes.set(xticks=[], yticks=[])


def rows_to_draw(first: Mapping[str, Array], last: Mapping[str, Array]) -> Array:
    """The first image of each class; those that the last test is most sure of, and right, first."""
    rows = np.unique(first["label"], return_index=True)[1][:ANSWERS]
    is_right = last["classes"][rows] == last["label"][rows, None]
    of_label = np.where(is_right, last["probabilities"][rows], 0).max(axis=1)
    return rows[np.argsort(-of_label, kind="stable")]


def draw_bars(axes: Axes, arrays: Mapping[str, Array], row: int) -> None:
    """A bar for each of the three most likely classes of an image."""
    classes = arrays["classes"][row][:3]
    probabilities = arrays["probabilities"][row][:3]
    colours = [RIGHT if label == arrays["label"][row] else WRONG for label in classes]
    axes.barh(range(len(classes)), probabilities, 0.9, color=colours)
    for place, (label, value) in enumerate(zip(classes, probabilities, strict=True)):
        text = f"{arrays['class_names'][label]} {value:.0%}"
        axes.text(0.02, place, text, va="center", fontsize=9)
    axes.set(xlim=(0, 1), ylim=(2.5, -0.5), xticks=[], yticks=[])
