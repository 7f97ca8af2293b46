"""The look of a study's pictures: each method has a marker, a line style and a colour of its own."""

import math
from itertools import cycle

import matplotlib

matplotlib.use("Agg")
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from .tables import MARK, MARKED, Summary

MARKERS = "osD^v<>PXhpd"  # they and the line styles tell methods apart in grey
LINES = ("--", "-.", ":")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "0.45")  # Okabe and Ito's, 2008


def plot_styles(summary: Summary) -> dict[str, dict]:
    """The style of every method, the same in all pictures: `Summary.focus` is black, its line solid."""
    styles: dict[str, dict] = {}
    for name, marker, line, colour in zip(summary.variants, cycle(MARKERS), cycle(LINES), cycle(COLOURS), strict=False):
        styles[name] = {"label": name, "marker": marker, "linestyle": line, "color": colour, "markerfacecolor": "white"}
    if summary.focus:
        styles[summary.focus] = {"label": summary.focus, "marker": "*", "color": "black", "markersize": 12}
    return styles


def subplots_grid(count: int, width: float = 4.2, height: float = 3.4, columns: int = 4) -> tuple[Figure, list]:
    """A figure of `count` panels, each width x height inches, and its axes."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    for empty in axes.flat[count:]:
        empty.remove()
    return figure, list(axes.flat[:count])


def legend(figure: Figure, axes: list) -> None:
    """Add one legend for all panels, to the right of them, and widen the figure for it."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.set_figwidth(figure.get_figwidth() + 0.8 + 0.09 * max(map(len, entries)))
    figure.legend(entries.values(), entries.keys(), loc="outside right center", frameon=False, handlelength=3)


def mark(ax, cells: pd.DataFrame, x: pd.Series) -> None:
    """Put the mark next to the points (x, mean) of the cells that were selected on test images."""
    for at, cell in zip(x, cells.itertuples(), strict=True):
        if cell.selected_on_test:
            ax.annotate(MARK, (at, cell.mean), (7, 4), textcoords="offset points")


def explain_mark(figure: Figure) -> None:
    """Add the line that explains the mark, if the figure has it."""
    labels = [label for ax in figure.axes for label in ax.get_yticklabels()]  # of categories, which have no text yet
    if any(MARK in text.get_text() for text in [*figure.findobj(Text), *labels]):
        figure.supxlabel(MARKED, x=0.01, ha="left", fontsize=9)
