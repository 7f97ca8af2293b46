"""The figures of a study as pictures, readable in grey: markers, hatches and line styles say what colours would."""

import math
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import open_clip
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from clip import load_backbone
from trainers import PromptTrainer

from ..configuration import parse_arguments, setup_cfg
from .spec import Run
from .tables import Summary

MARKERS = "osD^v<>PXhpd"
LINES = ("-", "--", "-.", ":")
GREYS = ("0.0", "0.35", "0.55")
HATCHES = ("", "///", "...", "xxx")
FULL = {"base2new": "new", "cross_dataset": "all classes"}  # the parts that the paper reports
AXIS = {"new": "accuracy on new classes (%)"}


def draw(summary: Summary, folder: Path) -> Iterator[Path]:
    """Write every picture that there is something for, as PNG and SVG; yields the files."""
    pictures = {"accuracy_time": accuracy_time, "few_shot": few_shot, "gains": gains, "prompts": prompts}
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "study"})
    for name, picture in pictures.items():
        figure = picture(summary)
        if figure is None:
            continue
        for kind in ("png", "svg"):
            file = folder / f"{name}.{kind}"
            figure.savefig(file, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            yield file
        plt.close(figure)


def looks(summary: Summary) -> dict[str, dict]:
    """How every method is drawn, the same in all pictures: MPL filled black, the others open."""
    styles = {}
    for name, marker, line, grey in zip(summary.variants, cycle(MARKERS), cycle(LINES), cycle(GREYS), strict=False):
        own = name == summary.focus
        styles[name] = {
            "label": name,
            "marker": "*" if own else marker,
            "linestyle": "-" if own else line,
            "color": "black" if own else grey,
            "markerfacecolor": "black" if own else "white",
            "markersize": 13 if own else 7,
        }
    return styles


def panels(count: int, width: float = 4.2, height: float = 3.4, columns: int = 4) -> tuple[Figure, list]:
    """A figure of so many panels, and its axes."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    for empty in axes.flat[count:]:
        empty.remove()
    return figure, list(axes.flat[:count])


def legend(figure: Figure, axes: list) -> None:
    """One for all panels, beside them, in a figure made wider for it."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.set_figwidth(figure.get_figwidth() + 0.6 + 0.09 * max(map(len, entries)))
    figure.legend(entries.values(), entries.keys(), loc="outside right center", frameon=False)


def average(summary: Summary, protocol: str, part: str) -> pd.DataFrame:
    """The cells of the average over datasets, by method."""
    cells = summary.cells
    chosen = (cells["protocol"] == protocol) & (cells["part"] == part) & (cells["dataset"] == "average")
    return cells[chosen & cells["mean"].notna()].set_index("method")


def accuracy_time(summary: Summary) -> Figure | None:
    """Average accuracy against the average time of training (the paper's Figure 2); zero-shot CLIP is a line."""
    parts = [(protocol, part) for protocol, part in summary.parts if FULL.get(protocol) == part]
    parts = [(*names, average(summary, *names)) for names in parts]
    parts = [names for names in parts if len(names[2])]
    if not parts:
        return None
    styles = looks(summary)
    figure, axes = panels(len(parts), 5.2, 4)
    for ax, (protocol, part, cells) in zip(axes, parts, strict=True):
        times = summary.times[summary.times["protocol"] == protocol]
        times = times[times["method"].isin(cells.index)]
        devices = times["device"].unique()
        per, unit = (60, "minutes") if times["seconds"].median() > 600 else (1, "seconds")
        for row in times.itertuples():
            cell, style = cells.loc[row.method], dict(styles[row.method])
            if len(devices) > 1:
                style["label"] += f" ({row.device})"
            ax.errorbar(row.seconds / per, cell["mean"], cell["spread"], **style | {"linestyle": ""}, capsize=3)
        for name in cells.index.difference(times["method"]):
            ax.axhline(cells.loc[name, "mean"], color="0.4", linestyle=":", label=f"{name} (no training)")
        where = devices[0] if len(devices) == 1 else f"{len(devices)} devices: not comparable"
        ax.set(title=protocol, ylabel=AXIS.get(part, "accuracy (%)"))
        ax.margins(x=0.08)
        ax.set(xlabel=f"training time of a run ({unit}, {where})", xlim=(0, None))
    legend(figure, axes)
    return figure


def few_shot(summary: Summary) -> Figure | None:
    """Accuracy against the number of shots, for every dataset and the average."""
    cells = summary.cells[(summary.cells["protocol"] == "few_shot") & summary.cells["mean"].notna()]
    if cells.empty:
        return None
    styles, shots = looks(summary), summary.study.shots
    datasets = [name for name in ("average", *summary.study.datasets) if name in cells["dataset"].values]
    figure, axes = panels(len(datasets))
    for ax, dataset in zip(axes, datasets, strict=True):
        for method, own in cells[cells["dataset"] == dataset].groupby("method", sort=False):
            at = [int(part.split()[0]) for part in own["part"]]
            ax.errorbar(at, own["mean"], own["spread"], **styles[method], capsize=2)
        ax.set_xscale("log", base=2)
        ax.set_xticks(shots, map(str, shots))
        ax.set(title=dataset, xlabel="images a class", ylabel="accuracy (%)")
    legend(figure, axes)
    return figure


def gains(summary: Summary) -> Figure | None:
    """Points that MPL gains over zero-shot CLIP, or else over CoOp, on every dataset."""
    methods = {variant.method: name for name, variant in reversed(summary.variants.items())}
    reference = methods.get("ZeroshotCLIP") or methods.get("CoOp")
    if not (reference and summary.focus):
        return None
    cells, found = summary.cells, []
    for protocol, part in summary.parts:
        own = cells[(cells["protocol"] == protocol) & (cells["part"] == part)]
        means = own.pivot(index="dataset", columns="method", values="mean")
        gain = (means[summary.focus] - means[reference]).dropna()
        if len(gain):
            found.append(
                (
                    protocol,
                    part,
                    pd.concat([gain.drop("average", errors="ignore").sort_values(), gain.filter(["average"])]),
                )
            )
    if not found:
        return None
    figure, axes = panels(len(found), 4.6, 1.4 + 0.28 * max(len(gain) for *_, gain in found), columns=3)
    for ax, (protocol, part, gain) in zip(axes, found, strict=True):
        fill = ["0.35" if name == "average" else "white" if value < 0 else "0.75" for name, value in gain.items()]
        hatch = ["///" if value < 0 else "" for value in gain]
        bars = ax.barh(gain.index, gain, color=fill, hatch=hatch, edgecolor="black")
        ax.bar_label(bars, fmt="%+.1f", padding=3, fontsize=8)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.margins(x=0.18)
        ax.set(title=f"{protocol}, {part}", xlabel=f"{summary.focus} over {reference} (points)")
    return figure


def prompts(summary: Summary) -> Figure | None:
    """How many prompts each layer of the image tower sees, under the schedules of the methods that vary it."""
    done = set(zip(summary.runs["protocol"], summary.runs["method"], strict=True))  # other schedules may be invalid
    drawn = {}
    for run in (chain[0] for chain in summary.study.chains()):
        if (run.protocol, run.variant.name) in done - drawn.keys() and (lengths := schedule(run)):
            drawn[run.protocol, run.variant.name] = lengths
    if not drawn:
        return None
    styles = looks(summary)
    protocols = list(dict.fromkeys(protocol for protocol, _ in drawn))
    figure, axes = panels(len(protocols), 5.2, 4)
    for ax, chosen in zip(axes, protocols, strict=True):
        alike: dict[tuple[int, ...], list[str]] = {}  # variants of one schedule share a line
        for (protocol, name), lengths in drawn.items():
            if protocol == chosen:
                alike.setdefault(tuple(lengths), []).append(name)
        for lengths, names in alike.items():
            style = styles[summary.focus if summary.focus in names else names[0]]
            style |= {"label": ", ".join(names), "drawstyle": "steps-mid", "markersize": 6}
            ax.plot(range(len(lengths)), lengths, **style)
        ax.set(title=chosen, xlabel="layer of the image tower", ylabel="prompts in its input", ylim=(0, None))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.yaxis.get_major_locator().set_params(integer=True)
    legend(figure, axes)
    return figure


def schedule(run: Run) -> list[int] | None:
    """The number of vision prompts at each layer, if the method says it; weights are read only from a file."""
    method = run.variant.trainer
    if method.vision_lengths.__func__ is PromptTrainer.vision_lengths.__func__:
        return None
    cfg = setup_cfg(parse_arguments(list(run.arguments)))
    name = cfg.MODEL.BACKBONE.NAME
    known = name.split(":")[0].replace("/", "-")
    if known in open_clip.list_models():
        layers = open_clip.get_model_config(known)["vision_cfg"]["layers"]
    else:
        layers = len(load_backbone(name).visual.transformer.resblocks)
    return method.vision_lengths(method.settings_of(cfg), layers)
