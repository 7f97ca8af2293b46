"""The results of a study as pictures. The function of a picture gives its name, and its docstring
the caption.

A picture without results is a figure without axes.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from common.files import replacing
from common.pages import all_letters

from .tables import MARK, MARKED, Summary, marked, shots_label

TABLE = ["protocol", "part"]  # the names of a table, and of a panel
Y_LABELS = {
    "base": "accuracy on base classes (%)",
    "new": "accuracy on new classes (%)",
    "H": "harmonic mean (%)",
}
KINDS = ("png", "svg", "pdf")
MARKERS = "osD^v<>PXhpd"  # 12 markers and 5 lines: 60 pairs that tell methods apart in grey
LINES = ("--", "-.", ":", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)))
# Okabe and Ito's, 2008
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "0.45",
)
matplotlib.rcParams["text.parse_math"] = False  # a name may have a $


def draw(
    summary: Summary, folder: Path, kinds: Sequence[str] = KINDS
) -> Iterator[tuple[str, str, list[Path]]]:
    """Write every picture that the results allow; yields the name, the caption and the files of
    each.
    """
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    for picture in (accuracy_time, few_shot):
        figure = picture(summary)
        if not figure.axes:
            continue
        same_scale(figure.axes)
        legend(figure)
        notes = [f"±: {summary.spread_name}"]
        notes += [MARKED] if summary.runs["selected_on_test"].any() else []
        figure.supxlabel("; ".join(notes), x=0.01, ha="left", fontsize=9)
        yield (
            picture.__name__,
            " ".join(str(picture.__doc__).split()),
            save(figure, folder / picture.__name__, kinds),
        )


def save(figure: Figure, place: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Write a figure to `place` with each of these suffixes, and close it. The same figure gives
    the same bytes.
    """
    dates = {"svg": "Date", "pdf": "CreationDate"}
    files = [place.with_name(f"{place.name}.{kind}") for kind in kinds]
    for file, kind in zip(files, kinds, strict=True):
        with replacing(file) as partial, plt.rc_context({"svg.hashsalt": "study"}), all_letters():
            figure.savefig(
                partial,
                format=kind,
                dpi=150,
                metadata={dates[kind]: None} if kind in dates else None,
            )
        figure.set_layout_engine("none")  # the next kind keeps the places, which take long to find
    plt.close(figure)
    return files


Panels = list[tuple[Any, Any, Any]]  # axes, key and value


def subplots_grid(
    panels: dict, width: float = 4.2, height: float = 3.4, columns: int = 4
) -> tuple[Figure, Panels]:
    """A figure with a panel of width x height inches for each entry, and its axes with the key and
    the value.
    """
    if not panels:
        return Figure(), []
    columns = min(len(panels), columns)
    rows = math.ceil(len(panels) / columns)
    layout: Any = ConstrainedLayoutEngine(h_pad=0.1)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout=layout, squeeze=False
    )
    for empty in axes.flat[len(panels) :]:
        empty.remove()
    return figure, [(ax, *panel) for ax, panel in zip(axes.flat, panels.items(), strict=False)]


def plot_styles(summary: Summary) -> dict[str, dict]:
    """The style of every method, the same in all pictures: `Summary.focus` is black, its line
    solid.
    """
    styles: dict[str, dict] = {}
    looks = zip(cycle(MARKERS), cycle(LINES), cycle(COLOURS), strict=False)
    for name, (marker, line, colour) in zip(summary.variants, looks, strict=False):
        style = {"marker": marker, "linestyle": line, "color": colour}
        styles[name] = style | {"label": name, "markerfacecolor": "white"}
    if summary.focus:
        styles[summary.focus] = {
            "label": summary.focus,
            "marker": "*",
            "color": "black",
            "markersize": 12,
        }
    return styles


def same_scale(panels: Sequence[Axes]) -> None:
    """Let a point of accuracy be as high in each panel."""
    limits = [ax.get_ylim() for ax in panels]
    span = max(high - low for low, high in limits)
    for ax, (low, high) in zip(panels, limits, strict=True):
        top = min((low + high + span) / 2, max(high, 101))
        ax.set_ylim(top - span, top)


def legend(figure: Figure) -> None:
    """Add one legend for all panels, to the right of them, and widen the figure for it."""
    entries: dict[str, Any] = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        figure.set_figwidth(figure.get_figwidth() + 0.8 + 0.09 * max(map(len, entries)))
        place: Any = "outside right center"
        figure.legend(entries.values(), entries.keys(), loc=place, frameon=False, handlelength=3)


def mark(ax: Axes, cells: pd.DataFrame, x: pd.Series) -> None:
    """Put the mark next to the points (x, mean) of the cells that were selected on test images."""
    for at, cell in zip(x, cells.itertuples(), strict=True):
        if cell.selected_on_test:
            ax.annotate(MARK, (at, cell.mean), (7, 4), textcoords="offset points")


def accuracy_time(summary: Summary) -> Figure:
    """Average accuracy against the average training time of a run (the paper's Figure 2). A method
    that is not trained is a line. The time does not begin at 0."""
    cells = summary.cells.query("dataset == 'average' and protocol != 'few_shot'").dropna(
        subset="mean"
    )
    trained = set(summary.times[["protocol", "method"]].itertuples(index=False, name=None))
    panels = {}
    for (protocol, part), rows in cells.set_index("method").groupby(TABLE, sort=False):
        if any((protocol, method) in trained for method in rows.index):  # others have no times
            panels[protocol, part] = rows
    figure, drawn = subplots_grid(panels, 4.4, 3.8, 3)
    for ax, (protocol, part), rows in drawn:
        draw_times(
            ax,
            summary,
            rows,
            summary.times.query("protocol == @protocol and method in @rows.index"),
        )
        ax.set(title=f"{protocol}, {part}", ylabel=Y_LABELS.get(part, "accuracy (%)"))
    return figure


def draw_times(ax: Axes, summary: Summary, rows: pd.DataFrame, times: pd.DataFrame) -> None:
    """A point for each trained method of one table, a line for each other one."""
    styles = plot_styles(summary)
    devices = times["device"].unique()
    mark(ax, rows.loc[times["method"]], times["seconds"])
    for time in times.itertuples():
        style = styles[time.method] | {"linestyle": "", "capsize": 3}
        if len(devices) > 1:
            style["label"] += f" ({time.device})"
        ax.errorbar(time.seconds, *rows.loc[time.method, ["mean", summary.spread]], **style)
    for name in rows.index.difference(times["method"]):
        style = styles[name] | {"label": f"{name} (no training)"}
        ax.axhline(rows.loc[name, "mean"], **style)
    device = devices[0] if len(devices) == 1 else f"{len(devices)} devices: not comparable"
    ax.margins(x=0.15)  # no marker is cut
    ax.set(xlabel=f"training time of a run (seconds)\n{device}")


def few_shot(summary: Summary) -> Figure:
    """Accuracy against the number of shots, for the average and every dataset (CoOp's Figure 3)."""
    cells = summary.cells.query("protocol == 'few_shot'").dropna(subset="mean")
    if cells["part"].nunique() < 2:
        return Figure()
    styles = plot_styles(summary)
    # Curves cross: the legend has the mark, too
    for method in set(cells[cells["selected_on_test"]]["method"]):
        styles[method]["label"] = marked(method, True)
    shots = summary.study.shots
    cells["shots"] = cells["part"].map(dict(zip(map(shots_label, shots), shots, strict=True)))
    of_datasets = dict(list(cells.groupby("dataset")))
    panels = {
        dataset: of_datasets[dataset]
        for dataset in ("average", *summary.study.datasets)
        if dataset in of_datasets
    }
    figure, drawn = subplots_grid(panels)
    for ax, dataset, rows in drawn:
        draw_curves(ax, rows, summary.spread, styles)
        ax.set_xscale("log", base=2)
        ax.set_xticks(shots, map(str, shots))
        ax.set(title=dataset, xlabel="images per class", ylabel="accuracy (%)")
    return figure


def draw_curves(ax: Axes, cells: pd.DataFrame, spread: str, styles: dict[str, dict]) -> None:
    """The accuracy of each method on one dataset, in a band of the spread."""
    for method, rows in cells.groupby("method", sort=False):
        shots = rows["shots"]
        ax.errorbar(shots, rows["mean"], **styles[method])
        mark(ax, rows, shots)
        width = rows[spread].fillna(0)
        edges = rows["mean"] - width, rows["mean"] + width
        colour = styles[method]["color"]
        ax.fill_between(shots, *edges, color=colour, alpha=0.15, linewidth=0)
