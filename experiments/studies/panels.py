"""Panels of pictures, and the colours, lines and markers of methods."""

import math
from itertools import cycle
from typing import Any

import matplotlib

matplotlib.use("Agg")
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .tables import MARK, Summary

MARKERS = "osD^v<>PXhpd"  # 12 markers and 5 lines: 60 pairs that tell methods apart in grey
LINES = ("--", "-.", ":", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)))
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "0.45")  # Okabe and Ito's, 2008
NARROW = 4.0  # inches of a panel for a telephone


def plot_styles(summary: Summary) -> dict[str, dict]:
    """The style of every method, the same in all pictures: `Summary.focus` is black, its line solid."""
    styles: dict[str, dict] = {}
    for name, marker, line, colour in zip(summary.variants, cycle(MARKERS), cycle(LINES), cycle(COLOURS), strict=False):
        styles[name] = {"label": name, "marker": marker, "linestyle": line, "color": colour, "markerfacecolor": "white"}
    if summary.focus:
        styles[summary.focus] = {"label": summary.focus, "marker": "*", "color": "black", "markersize": 12}
    return styles


def subplots_grid(
    count: int, width: float = 4.2, height: float = 3.4, columns: int = 4, narrow: bool = False
) -> tuple[Figure, list]:
    """A figure of `count` panels, each width x height inches, and its axes; `narrow`: one below the other."""
    columns, width = (1, NARROW) if narrow else (min(count, columns), width)
    rows = math.ceil(count / columns)
    layout: Any = ConstrainedLayoutEngine(h_pad=0.1)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), layout=layout, squeeze=False)
    for empty in axes.flat[count:]:
        empty.remove()
    return figure, list(axes.flat[:count])


def legend(figure: Figure, axes: list, narrow: bool = False) -> None:
    """Add one legend for all panels, to the right of them, and widen the figure for it; `narrow`: above them."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    longest = max(map(len, entries))
    if narrow:
        columns = max(1, int(NARROW / (0.8 + 0.09 * longest)))
        figure.set_figheight(figure.get_figheight() + 0.3 + 0.22 * math.ceil(len(entries) / columns))
    else:
        columns = 1
        figure.set_figwidth(figure.get_figwidth() + 0.8 + 0.09 * longest)
    place: Any = "outside upper center" if narrow else "outside right center"
    figure.legend(entries.values(), entries.keys(), loc=place, frameon=False, handlelength=3, ncols=columns)


def mark(ax, cells: pd.DataFrame, x: pd.Series) -> None:
    """Put the mark next to the points (x, mean) of the cells that were selected on test images."""
    for at, cell in zip(x, cells.itertuples(), strict=True):
        if cell.selected_on_test:
            ax.annotate(MARK, (at, cell.mean), (7, 4), textcoords="offset points")
