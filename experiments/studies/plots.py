"""The figures of a study as pictures: accuracy, time, gains and schedules; see `curves` for those of single runs."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

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
from .differences import paired_differences
from .spec import Run
from .style import average, explain_mark, legend, mark, plot_styles, subplots_grid
from .tables import MARK, Summary, shots_label

Y_LABELS = {
    "base": "accuracy on base classes (%)",
    "new": "accuracy on new classes (%)",
    "H": "harmonic mean (%)",
}
KINDS = ("png", "svg", "pdf")
UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same picture is the same file


class Picture(NamedTuple):
    """A picture of a study: the name of its files, the function that draws it (or returns None), and its caption."""

    name: str
    draw: Callable[[Summary], Figure | None]
    caption: str


def draw(summary: Summary, folder: Path, kinds: Sequence[str] = KINDS) -> Iterator[tuple[Picture, list[Path]]]:
    """Write every picture that the results allow, as PNG, SVG and PDF; yields each with its files."""
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "study"})
    for picture in PICTURES:
        figure = picture.draw(summary)
        if figure is None:
            continue
        explain_mark(figure)
        files = [folder / f"{picture.name}.{kind}" for kind in kinds]
        for file in files:
            kind = file.suffix[1:]
            with replacing(file) as partial:
                figure.savefig(partial, format=kind, dpi=150, metadata=UNDATED.get(kind))
            figure.set_layout_engine("none")  # the next kind keeps the places, which take long to find
        plt.close(figure)
        yield picture, files


def accuracy_time(summary: Summary) -> Figure | None:
    """Average accuracy (base, new and H) against average training time; a method that does not learn is a line."""
    averages = {names: average(summary, *names) for names in summary.parts if names[0] != "few_shot"}
    averages = {names: cells for names, cells in averages.items() if len(cells)}
    if not averages:
        return None
    styles = plot_styles(summary)
    figure, axes = subplots_grid(len(averages), 4.4, 3.8, columns=3)
    for ax, ((protocol, part), cells) in zip(axes, averages.items(), strict=True):
        times = summary.times[summary.times["protocol"] == protocol]
        times = times[times["method"].isin(cells.index)]
        devices = times["device"].unique()
        per, unit = (60, "minutes") if times["seconds"].median() > 600 else (1, "seconds")
        mark(ax, cells.loc[times["method"]], times["seconds"] / per)
        for row in times.itertuples():
            cell, style = cells.loc[row.method], dict(styles[row.method])
            if len(devices) > 1:
                style["label"] += f" ({row.device})"
            ax.errorbar(row.seconds / per, cell["mean"], cell["spread"], **style | {"linestyle": ""}, capsize=3)
        for name in cells.index.difference(times["method"]):
            ax.axhline(cells.loc[name, "mean"], color="0.4", linestyle=":", label=f"{name} (no training)")
        device = devices[0] if len(devices) == 1 else f"{len(devices)} devices: not comparable"
        ax.set(title=f"{protocol}, {part}", ylabel=Y_LABELS.get(part, "accuracy (%)"))
        ax.margins(x=0.08)
        ax.set(xlabel=f"training time of a run ({unit}, {device})", xlim=(0, None))
    legend(figure, axes)
    return figure


def few_shot(summary: Summary) -> Figure | None:
    """Accuracy against the number of shots, with bands: the average, then every dataset (CoOp's Figure 3)."""
    cells = summary.cells[(summary.cells["protocol"] == "few_shot") & summary.cells["mean"].notna()]
    if cells.empty:
        return None
    styles, shots = plot_styles(summary), summary.study.shots
    for method in cells[cells["selected_on_test"]]["method"].unique():  # curves cross: the legend has the mark, too
        styles[method]["label"] += f" {MARK}"
    numbers = {shots_label(number): number for number in shots}
    datasets = [name for name in ("average", *summary.study.datasets) if name in cells["dataset"].values]
    figure, axes = subplots_grid(len(datasets))
    for ax, dataset in zip(axes, datasets, strict=True):
        for method, rows in cells[cells["dataset"] == dataset].groupby("method", sort=False):
            x, spread = rows["part"].map(numbers), rows["spread"].fillna(0)
            ax.errorbar(x, rows["mean"], **styles[method])
            mark(ax, rows, x)
            ax.fill_between(
                x, rows["mean"] - spread, rows["mean"] + spread, color=styles[method]["color"], alpha=0.15, linewidth=0
            )
        ax.set_xscale("log", base=2)
        ax.set_xticks(shots, map(str, shots))
        ax.set(title=dataset, xlabel="images per class", ylabel="accuracy (%)")
    legend(figure, axes)
    return figure


def gains(summary: Summary) -> Figure | None:
    """Points that `Summary.focus` gains over `Summary.baseline` on every dataset."""
    if not (summary.focus and summary.baseline):
        return None
    cells, found = summary.cells, []
    for protocol, part in summary.parts:
        rows = cells[(cells["protocol"] == protocol) & (cells["part"] == part)]
        means = rows.pivot(index="dataset", columns="method", values="mean")
        marked = rows[rows["selected_on_test"] & rows["method"].isin([summary.focus, summary.baseline])]["dataset"]
        gain = (means[summary.focus] - means[summary.baseline]).dropna()
        if len(gain):
            by_size = gain.drop("average", errors="ignore").sort_values()
            ordered = pd.concat([by_size, gain.filter(["average"])])
            found.append((protocol, part, ordered.rename({name: f"{name} {MARK}" for name in marked})))
    if not found:
        return None
    figure, axes = subplots_grid(len(found), 4.6, 1.4 + 0.28 * max(len(gain) for *_, gain in found), columns=3)
    for ax, (protocol, part, gain) in zip(axes, found, strict=True):
        averages = ("average", f"average {MARK}")
        fill = ["0.35" if name in averages else "white" if value < 0 else "0.75" for name, value in gain.items()]
        hatch = ["///" if value < 0 else "" for value in gain]
        bars = ax.barh(gain.index, gain, color=fill, hatch=hatch, edgecolor="black")
        ax.bar_label(bars, fmt="%+.2f", padding=3, fontsize=8)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.margins(x=0.18)
        ax.set(title=f"{protocol}, {part}", xlabel=f"{summary.focus} over {summary.baseline} (points)")
    return figure


def prompts(summary: Summary) -> Figure | None:
    """The number of prompts in the input of each layer of the image tower."""
    done = set(zip(summary.runs["protocol"], summary.runs["method"], strict=True))  # other settings may be invalid
    drawn: dict[tuple[str, str], tuple[int, ...]] = {}
    for run in (sequence[0] for sequence in summary.study.sequences()):
        if (run.protocol, run.variant.name) in done - drawn.keys() and (lengths := schedule(run)):
            drawn[run.protocol, run.variant.name] = tuple(lengths)
    if not drawn:
        return None
    styles = plot_styles(summary)
    protocols = list(dict.fromkeys(protocol for protocol, _ in drawn))
    figure, axes = subplots_grid(len(protocols), 5.2, 4)
    for ax, chosen in zip(axes, protocols, strict=True):
        names_of: dict[tuple[int, ...], list[str]] = {}  # variants with the same schedule share a line
        for (protocol, name), line in drawn.items():
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


PICTURES = (
    Picture(
        "accuracy_time",
        accuracy_time,
        "Average accuracy against the average time of training (the paper's Figure 2); a method that does not learn is "
        "a line.",
    ),
    Picture(
        "few_shot",
        few_shot,
        "Accuracy against the number of shots, for the average and every dataset (CoOp's Figure 3), with the spread.",
    ),
    Picture(
        "differences",
        paired_differences,
        "Differences of one method to each other one, paired: dots are datasets (with one dataset: seeds), diamonds "
        "their mean, n their number, p that of the tables, corrected by Holm's method.",
    ),
    Picture(
        "learning_curves", learning_curves, "Training loss and validation accuracy by epoch; a line for each seed."
    ),
    Picture("gains", gains, "Points that one method gains over another on every dataset; each panel names the two."),
    Picture(
        "prompts",
        prompts,
        "The number of prompts in the input of each layer of the image tower, for the methods that vary it.",
    ),
)
