"""The results of a study as pictures. The function of a picture gives its name, and its docstring the caption."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from common.errors import UsageError
from common.files import replacing

from .critical import draw_ranking, ranking
from .panels import legend, mark, plot_styles, subplots_grid
from .predicted import class_accuracy, confusion, reliability, risk_coverage, worst_pairs
from .tables import MARKED, Summary, marked, shots_label

TABLE = ["protocol", "part"]  # the names of a table, and of a panel
Y_LABELS = {"base": "accuracy on base classes (%)", "new": "accuracy on new classes (%)", "H": "harmonic mean (%)"}
KINDS = ("png", "svg", "pdf")


def draw(
    summary: Summary, folder: Path, kinds: Sequence[str] = KINDS, narrow: bool = False
) -> Iterator[tuple[str, str, list[Path]]]:
    """Write every picture that the results allow; yields the name, the caption and the files of each.

    Args:
        narrow: panels one below the other, for a telephone.
    """
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "study"})
    of_results = (accuracy_time, few_shot, gains, critical_difference)
    for picture in (*of_results, reliability, risk_coverage, class_accuracy, confusion, worst_pairs):
        figure = picture(summary, narrow)
        if figure is None:
            continue
        if summary.runs["selected_on_test"].any():
            figure.supxlabel(MARKED, x=0.01, ha="left", fontsize=7 if narrow else 9)
        files = [folder / f"{picture.__name__}.{kind}" for kind in kinds]
        for file in files:
            with replacing(file) as partial:
                dated: dict[str, Any] = {"metadata": {"Date": None}} if file.suffix == ".svg" else {}
                figure.savefig(partial, format=file.suffix[1:], dpi=150, **dated)
            figure.set_layout_engine("none")  # the next kind keeps the places, which take long to find
        plt.close(figure)
        yield picture.__name__, " ".join(str(picture.__doc__).split()), files


def accuracy_time(summary: Summary, narrow: bool = False) -> Figure | None:
    """Average accuracy against the average training time of a run (the paper's Figure 2), with the standard deviation
    over seeds. A method that is not trained is a line."""
    cells = summary.cells.query("dataset == 'average' and protocol != 'few_shot'").dropna(subset="mean")
    trained = set(summary.times[["protocol", "method"]].itertuples(index=False, name=None))
    panels = [  # others have no axis of time
        (names, rows)
        for names, rows in cells.set_index("method").groupby(TABLE, sort=False)
        if any((names[0], method) in trained for method in rows.index)
    ]
    if not panels:
        return None
    styles = plot_styles(summary)
    figure, axes = subplots_grid(len(panels), 4.4, 3.8, 3, narrow)
    for ax, ((protocol, part), rows) in zip(axes, panels, strict=True):
        times = summary.times.query("protocol == @protocol and method in @rows.index")
        devices = times["device"].unique()
        mark(ax, rows.loc[times["method"]], times["seconds"])
        for time in times.itertuples():
            style = styles[time.method] | {"linestyle": "", "capsize": 3}
            style["label"] += f" ({time.device})" * (len(devices) > 1)
            ax.errorbar(time.seconds, *rows.loc[time.method, ["mean", "spread"]], **style)
        for name in rows.index.difference(times["method"]):
            style = styles[name] | {"label": f"{name} (no training)"}
            ax.axhline(rows.loc[name, "mean"], **style)
        device = devices[0] if len(devices) == 1 else f"{len(devices)} devices: not comparable"
        ax.set(title=f"{protocol}, {part}", ylabel=Y_LABELS.get(part, "accuracy (%)"))
        ax.margins(x=0.08)
        ax.set(xlabel=f"training time of a run (seconds)\n{device}", xlim=(0, None))
    legend(figure, axes, narrow)
    return figure


def few_shot(summary: Summary, narrow: bool = False) -> Figure | None:
    """Accuracy against the number of shots, for the average and every dataset (CoOp's Figure 3), with the spread."""
    cells = summary.cells.query("protocol == 'few_shot'").dropna(subset="mean")
    if cells["part"].nunique() < 2:
        return None
    styles, shots = plot_styles(summary), summary.study.shots
    selected = set(cells[cells["selected_on_test"]]["method"])  # curves cross: the legend has the mark, too
    cells["shots"] = cells["part"].map({shots_label(number): number for number in shots})
    datasets = [name for name in ("average", *summary.study.datasets) if name in cells["dataset"].values]
    figure, axes = subplots_grid(len(datasets), narrow=narrow)
    for ax, dataset in zip(axes, datasets, strict=True):
        for method, rows in cells[cells["dataset"] == dataset].groupby("method", sort=False):
            style = styles[method] | {"label": marked(method, method in selected)}
            ax.errorbar(rows["shots"], rows["mean"], **style)
            mark(ax, rows, rows["shots"])
            edges = (rows["mean"] + sign * rows["spread"].fillna(0) for sign in (-1, 1))
            ax.fill_between(rows["shots"], *edges, color=style["color"], alpha=0.15, linewidth=0)
        ax.set_xscale("log", base=2)
        ax.set_xticks(shots, map(str, shots))
        ax.set(title=dataset, xlabel="images per class", ylabel="accuracy (%)")
    legend(figure, axes, narrow)
    return figure


def gains(summary: Summary, narrow: bool = False) -> Figure | None:
    """Points that one method gains over another on every dataset; each panel names the two."""
    focus, baseline = summary.focus, summary.baseline
    cells = summary.cells[summary.cells["method"].isin([focus, baseline])].dropna(subset="mean")
    panels = []
    for names, rows in cells.groupby(TABLE, sort=False):
        means = rows.pivot(index="dataset", columns="method", values="mean").reindex(columns=[focus, baseline])
        gain = (means[focus] - means[baseline]).dropna().sort_values()
        if len(gain):
            order = sorted(gain.index, key="average".__eq__)  # the average is the last bar, at the top
            panels.append((*names, gain[order], set(rows[rows["selected_on_test"]]["dataset"])))
    if not panels:
        return None
    figure, axes = subplots_grid(len(panels), 4.6, 1.4 + 0.28 * max(len(gain) for *_, gain, _ in panels), 3, narrow)
    for ax, (protocol, part, gain, selected) in zip(axes, panels, strict=True):
        colours = ["0.35" if name == "average" else "0.75" for name in gain.index]
        bars = ax.barh([marked(name, name in selected) for name in gain.index], gain, color=colours, edgecolor="black")
        ax.bar_label(bars, fmt="%+.2f", padding=3, fontsize=8)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.update_datalim([(-1, 0), (1, 0)])  # at least a point to both sides
        ax.margins(x=0.25)
        ax.set(title=f"{protocol}, {part}", xlabel=f"{focus} over {baseline} (points)")
    return figure


def critical_difference(summary: Summary, narrow: bool = False) -> Figure | None:
    """Average ranks over datasets, 1 is the best (Demšar, JMLR 2006). Methods that a bar at the right spans are not
    shown to differ: Nemenyi's test at 5%, after Friedman's (CD: the critical difference)."""
    found = {}
    for names, kind in product(summary.parts, summary.kinds):
        with suppress(UsageError):
            found[(*names, kind)] = ranking(summary, *names, kind)
    if not found:
        return None
    height = 1.6 + 0.25 * max(len(each.ranks) for each in found.values())
    figure, axes = subplots_grid(len(found), 4.4, height, 3, narrow)
    for ax, ((protocol, part, kind), each) in zip(axes, found.items(), strict=True):
        labels = [marked(name, bool(summary.selected(protocol, part, name))) for name in each.ranks.index]
        draw_ranking(ax, each, labels)
        ax.set_title(f"{protocol}, {part}" + f"\n{kind} methods" * (len(summary.kinds) > 1))
    return figure
