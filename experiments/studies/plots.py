"""The results of a study as pictures. The function of a picture gives its name, and its docstring the caption."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import open_clip
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from clip import load_backbone
from common.files import replacing
from trainers import PromptTrainer

from ..arguments import parse_arguments
from ..configuration import setup_cfg
from .curves import learning_curves
from .spec import Run
from .style import explain_mark, legend, mark, plot_styles, subplots_grid
from .tables import Summary, marked, shots_label

TABLE = ["protocol", "part"]  # the names of a table, and of a panel
Y_LABELS = {
    "base": "accuracy on base classes (%)",
    "new": "accuracy on new classes (%)",
    "H": "harmonic mean (%)",
}
KINDS = ("png", "svg", "pdf")
UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same picture is the same file


def draw(summary: Summary, folder: Path, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, str, list[Path]]]:
    """Write every picture that the results allow; yields the name, the caption and the files of each."""
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "study"})
    for picture in PICTURES:
        figure = picture(summary)
        if figure is None:
            continue
        explain_mark(figure)
        files = [folder / f"{picture.__name__}.{kind}" for kind in kinds]
        for file in files:
            kind = file.suffix[1:]
            with replacing(file) as partial:
                figure.savefig(partial, format=kind, dpi=150, metadata=UNDATED.get(kind))
            figure.set_layout_engine("none")  # the next kind keeps the places, which take long to find
        plt.close(figure)
        yield picture.__name__, " ".join(str(picture.__doc__).split()), files


def accuracy_time(summary: Summary) -> Figure | None:
    """Average accuracy against the average training time of a run (the paper's Figure 2). A method that is not trained
    is a line."""
    cells = summary.cells.query("dataset == 'average' and protocol != 'few_shot'").dropna(subset="mean")
    if cells.empty:
        return None
    styles, panels = plot_styles(summary), list(cells.set_index("method").groupby(TABLE, sort=False))
    figure, axes = subplots_grid(len(panels), 4.4, 3.8, columns=3)
    for ax, ((protocol, part), rows) in zip(axes, panels, strict=True):
        times = summary.times.query("protocol == @protocol and method in @rows.index")
        devices = times["device"].unique()
        per, unit = (60, "minutes") if times["seconds"].median() > 600 else (1, "seconds")
        mark(ax, rows.loc[times["method"]], times["seconds"] / per)
        for time in times.itertuples():
            style = styles[time.method] | {"linestyle": "", "capsize": 3}
            style["label"] += f" ({time.device})" * (len(devices) > 1)
            ax.errorbar(time.seconds / per, *rows.loc[time.method, ["mean", "spread"]], **style)
        for name in rows.index.difference(times["method"]):
            ax.axhline(rows.loc[name, "mean"], color="0.4", linestyle=":", label=f"{name} (no training)")
        device = devices[0] if len(devices) == 1 else f"{len(devices)} devices: not comparable"
        ax.set(title=f"{protocol}, {part}", ylabel=Y_LABELS.get(part, "accuracy (%)"))
        ax.margins(x=0.08)
        ax.set(xlabel=f"training time of a run ({unit}, {device})", xlim=(0, None))
    legend(figure, axes)
    return figure


def few_shot(summary: Summary) -> Figure | None:
    """Accuracy against the number of shots, for the average and every dataset (CoOp's Figure 3), with the spread."""
    cells = summary.cells.query("protocol == 'few_shot'").dropna(subset="mean")
    if cells["part"].nunique() < 2:
        return None
    styles, shots = plot_styles(summary), summary.study.shots
    selected = set(cells[cells["selected_on_test"]]["method"])  # curves cross: the legend has the mark, too
    cells["shots"] = cells["part"].map({shots_label(number): number for number in shots})
    datasets = [name for name in ("average", *summary.study.datasets) if name in cells["dataset"].values]
    figure, axes = subplots_grid(len(datasets))
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
    legend(figure, axes)
    return figure


def differences(summary: Summary) -> Figure | None:
    """Differences of one method to each other one, paired: dots are datasets (with one dataset: seeds), diamonds their
    mean, n their number, p that of the tables, corrected by Holm's method."""
    panels = list(summary.tests.groupby(TABLE, sort=False)) if len(summary.tests) else []
    if not panels:
        return None
    most = max(len(tests) for _, tests in panels)
    figure, axes = subplots_grid(len(panels), 4.8, 1.3 + 0.36 * most, columns=3)
    for ax, ((protocol, part), tests) in zip(axes, panels, strict=True):
        for row, test in enumerate(tests.itertuples()):
            pairs = summary.differences(protocol, part, test.against)
            several = pairs.shape[1] > 1
            dots = (pairs.mean() if several else pairs.iloc[:, 0]).dropna()
            ax.plot(dots, [row] * len(dots), "o", color="0.45", markerfacecolor="none", markersize=5)
            ax.plot([test.difference], [row], "D", color="black", markersize=6)
            corrected = test.holm_datasets if several else test.holm_seeds
            p = "" if pd.isna(corrected) else f", p {corrected:.3f}"
            ax.annotate(f"n={len(dots)}{p}", (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        ax.axvline(0, color="black", linewidth=0.8)
        selected = list(tests["selected_on_test"])
        names = [marked(name, name in of) for name, of in zip(tests["against"], selected, strict=True)]
        ax.set_yticks(range(len(tests)), names)
        ax.set_ylim(len(tests) - 0.5, -0.5)
        focus = marked(summary.focus, any(summary.focus in of for of in selected))
        ax.set(title=f"{protocol}, {part}", xlabel=f"{focus} minus the other (points)")
    return figure


def gains(summary: Summary) -> Figure | None:
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
    figure, axes = subplots_grid(len(panels), 4.6, 1.4 + 0.28 * max(len(gain) for *_, gain, _ in panels), columns=3)
    for ax, (protocol, part, gain, selected) in zip(axes, panels, strict=True):
        colours = ["0.35" if name == "average" else "0.75" for name in gain.index]
        bars = ax.barh([marked(name, name in selected) for name in gain.index], gain, color=colours, edgecolor="black")
        ax.bar_label(bars, fmt="%+.2f", padding=3, fontsize=8)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.update_datalim([(-1, 0), (1, 0)])  # at least a point to both sides
        ax.margins(x=0.18)
        ax.set(title=f"{protocol}, {part}", xlabel=f"{focus} over {baseline} (points)")
    return figure


def prompts(summary: Summary) -> Figure | None:
    """The number of prompts in the input of each layer of the image tower, for the methods that vary it."""
    examples = {(run.protocol, run.variant.name): run for run in summary.results}
    schedules = {names: tuple(lengths) for names, run in examples.items() if (lengths := schedule(run))}
    if not schedules:
        return None
    styles = plot_styles(summary)
    protocols = list(dict.fromkeys(protocol for protocol, _ in schedules))
    figure, axes = subplots_grid(len(protocols), 5.2, 4)
    for ax, chosen in zip(axes, protocols, strict=True):
        names_of: dict[tuple[int, ...], list[str]] = {}  # variants with the same schedule share a line
        for (protocol, name), line in schedules.items():
            if protocol == chosen:
                names_of.setdefault(line, []).append(name)
        for line, names in names_of.items():
            style = styles[summary.focus if summary.focus in names else names[0]]
            style |= {"label": ", ".join(names), "drawstyle": "steps-mid", "markersize": 6}
            ax.plot(range(len(line)), line, **style)
        ax.set(title=chosen, xlabel="layer of the image tower", ylabel="prompts in its input", ylim=(0, None))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.yaxis.get_major_locator().set_params(integer=True)
    legend(figure, axes)
    return figure


def schedule(run: Run) -> list[int] | None:
    """The number of vision prompts at each layer; None for a method that does not define `vision_lengths`."""
    method = run.variant.trainer
    if not any("vision_lengths" in vars(base) for base in method.__mro__ if base is not PromptTrainer):
        return None  # without loading the backbone
    cfg = setup_cfg(parse_arguments(list(run.arguments)))
    return method.vision_lengths(method.settings_of(cfg), image_layers(cfg.MODEL.BACKBONE.NAME))


@cache
def image_layers(backbone: str) -> int:
    """The layers of a backbone's image tower; weights are read only if open_clip does not know its architecture."""
    known = backbone.split(":")[0].replace("/", "-")
    if known in open_clip.list_models():
        return open_clip.get_model_config(known)["vision_cfg"]["layers"]
    return len(load_backbone(backbone).visual.transformer.resblocks)


PICTURES: tuple[Callable[[Summary], Figure | None], ...] = (
    *(accuracy_time, few_shot, differences, learning_curves, gains, prompts),
)
