"""The content of inspect.json as pictures in grey, for screen and print."""

import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from common.files import replacing

from .measures import Content
from .tower import NEW

MARKS = list(product("osD^v<>PXph*", ("0.0", "0.55", "none")))  # marker and fill of a group of points
LONGEST = 32  # characters of a name
RASTERIZED = 2000  # points; more would make a large SVG


class Picture(NamedTuple):
    """The name of its files, the function that draws it (or returns None), its title and what it shows."""

    name: str
    draw: Callable[[Content], Figure | None]
    title: str
    caption: str


def draw(content: Content, folder: Path) -> list[tuple[Picture, Path]]:
    """Write every picture that the content allows, as PNG and SVG; returns each with its SVG."""
    drawn = []
    with matplotlib.rc_context({"svg.hashsalt": "inspect", "font.size": 9, "text.parse_math": False}):
        for picture in PICTURES:
            figure = picture.draw(content)
            if figure is None:
                continue
            for kind in ("png", "svg"):
                with replacing(folder / f"{picture.name}.{kind}") as partial:
                    save(figure, partial, kind)
                figure.set_layout_engine("none")  # the next kind keeps the places, which take long to find
            drawn.append((picture, folder / f"{picture.name}.svg"))
    return drawn


def save(figure: Figure, file: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may have letters that the font lacks
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def grey_map(axes: Axes, values: np.ndarray, form: str, rows: Sequence[str], columns: Sequence[Any]) -> None:
    """A map (rows, columns), dark where the value is high, with a number in each cell; nan is an empty cell."""
    largest = max(np.nanmax(values), 1e-6)
    axes.imshow(values, cmap="Greys", aspect="auto", norm=PowerNorm(0.5, vmin=0, vmax=largest, clip=True))
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "white" if value > 0.3 * largest else "black"
            axes.text(column, row, format(value, form), ha="center", va="center", color=color, fontsize=8)


def schedule(content: Content) -> Figure | None:
    """A cell for each prompt in the input of each layer, with the layer that it comes from."""
    towers = content["schedule"]
    if not towers:
        return None
    heights = [max(len(row["origins"]) for row in rows) for rows in towers.values()]
    figure = Figure(
        figsize=(1.2 + 0.5 * max(map(len, towers.values())), sum(1.1 + 0.24 * height for height in heights)),
        layout="constrained",
    )
    panels = figure.subplots(len(towers), squeeze=False, gridspec_kw={"height_ratios": [2 + h for h in heights]})
    for axes, (tower, rows), height in zip(panels[:, 0], towers.items(), heights, strict=True):
        for layer, position in ((row["layer"], n) for row in rows for n in range(len(row["origins"]))):
            origin = rows[layer]["origins"][position]
            shade = 0.25 + 0.75 * (layer - origin) / len(rows)  # the newest are the darkest
            axes.barh(position, 0.9, 0.9, layer - 0.45, color=str(min(shade, 0.95)), edgecolor="0.3", linewidth=0.5)
            color = "white" if shade < 0.5 else "black"
            axes.text(layer, position, str(origin), ha="center", va="center", color=color, fontsize=8)
        axes.set(title=f"{tower} tower", xlabel="layer", ylabel="prompt", xlim=(-0.6, len(rows) - 0.4))
        axes.set(xticks=range(len(rows)), yticks=[], ylim=(height - 0.4, -0.6))
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def groups_of(content: Content) -> list[str]:
    """The groups of tokens in any layer: CLS, patches, new, then carried ones by age."""
    names = {name for layer in content["layers"] for name in layer["groups"]}
    ages = sorted((name for name in names if name.startswith("carried ")), key=lambda name: int(name.split()[1]))
    return [name for name in ("CLS", "patches", NEW) if name in names] + ages


def by_group(content: Content, names: Sequence[str], key: str) -> np.ndarray:
    """(groups, layers); nan where a layer lacks a group or a value."""
    layers = content["layers"]
    cells = [[layer["groups"].get(name, {}).get(key) for layer in layers] for name in names]
    return np.array(cells, dtype=float).reshape(len(names), len(layers))


def attention(content: Content) -> Figure | None:
    if not content["layers"]:
        return None
    names, layers = groups_of(content), range(len(content["layers"]))
    figure = Figure(figsize=(2.2 + 0.55 * len(layers), 1.6 + 0.52 * len(names)), layout="constrained")
    upper, lower = figure.subplots(2)
    grey_map(upper, 100 * by_group(content, names, "share"), ".1f", names, layers)
    upper.set_title("share of CLS's attention (%)")
    grey_map(lower, by_group(content, names, "times_equal"), ".2f", names, layers)
    lower.set(title="attention to one token, as a multiple of equal attention to all", xlabel="layer")
    return figure


def geometry(content: Content) -> Figure | None:
    if not content["layers"]:
        return None
    names, layers = groups_of(content), range(len(content["layers"]))
    panels = {
        "norm": (names, "length (L2 norm), mean of the tokens", ".1f"),
        "cosine_to_new": (names[1:], "cosine similarity with the prompts new at the layer", ".2f"),
        "cosine_to_entry": (names[3:], "cosine similarity of carried prompts with themselves on entry", ".2f"),
    }
    drawn = []
    for key, (rows, title, form) in panels.items():
        cells = by_group(content, rows, key)
        known = np.flatnonzero(~np.isnan(cells).all(axis=1))
        if len(known):
            drawn.append((cells[known], [rows[n] for n in known], title, form))
    ratios = [2 + len(rows) for _, rows, *_ in drawn]
    figure = Figure(figsize=(2.2 + 0.55 * len(layers), 0.3 * sum(ratios)), layout="constrained")
    axes = figure.subplots(len(drawn), squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for panel, (cells, rows, title, form) in zip(axes, drawn, strict=True):
        grey_map(panel, cells, form, rows, layers)
        panel.set_title(title)
    axes[-1].set_xlabel("layer")
    return figure


def added(content: Content) -> Figure | None:
    layers = content["added"]["layers"]
    if len(layers) < 2:
        return None
    cosines, side = np.array(content["added"]["cosines"]), 2.0 + 0.22 * min(len(layers), 40)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cosines, cmap="Greys", vmin=-1, vmax=1)
    first = [n for n, layer in enumerate(layers) if n == 0 or layers[n - 1] != layer]
    axes.set_xticks(first, [layers[n] for n in first])
    axes.set_yticks(first, [layers[n] for n in first])
    axes.set(xlabel="enters before layer", ylabel="enters before layer")
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8)
    return figure


def rollout(content: Content) -> Figure | None:
    """Each image in grey, and the share of each patch among them: without prompts, and with them, on one scale."""
    rows = content["rollout"]
    if not rows:
        return None
    panels = list(rows[0]["shares"])
    figure = Figure(figsize=(2.3 * (1 + len(panels)), 2.45 * len(rows)), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), 1 + len(panels), squeeze=False), rows, strict=True):
        image = np.array(row["pixels"])
        axes[0].imshow(image, cmap="gray", vmin=0, vmax=1)
        axes[0].set_title(row["image"][-LONGEST:], fontsize=8)
        shares = {name: np.array(row["shares"][name]["patches"]) for name in panels}
        maps = {name: share / share.sum() for name, share in shares.items()}
        largest = max(light.max() for light in maps.values())
        for panel, (name, light) in zip(axes[1:], maps.items(), strict=True):
            repeat = [side // count for side, count in zip(image.shape, light.shape, strict=True)]
            contrast = (image - image.min()) / max(np.ptp(image), 1e-6)
            bright = np.kron(light / largest, np.ones(repeat)) * (0.6 + 0.4 * contrast)
            panel.imshow(bright, cmap="gray", vmin=0, vmax=1)
            prompts = 100 * sum(row["shares"][name]["prompts"].values())
            rest = f", prompts {prompts:.0f} %" if prompts else ""
            panel.set_title(f"{name}\npatches {100 * shares[name].sum():.0f} %{rest}", fontsize=8)
        for panel in axes:
            panel.set_axis_off()
    return figure


def features(content: Content) -> Figure | None:
    found = content["features"]
    if not found:
        return None
    many = len(set(found["marks"])) > len(MARKS)
    marks = [""] * len(found["marks"]) if many else found["marks"]
    figure = Figure(figsize=(4.2 * len(found["panels"]) + 1.8, 4), layout="constrained")
    panels = figure.subplots(1, len(found["panels"]), squeeze=False)[0]
    for axes, (name, panel) in zip(panels, found["panels"].items(), strict=True):
        points = np.array(panel["points"])
        for number, mark in enumerate(dict.fromkeys(marks)):
            own = points[[other == mark for other in marks]]
            marker, fill = MARKS[number % len(MARKS)]
            style = {"marker": marker, "facecolors": fill, "edgecolors": "0.0" if fill == "none" else fill}
            label = f" {mark[:LONGEST]}"  # a legend leaves out what begins with _
            axes.scatter(*own.T, s=18, linewidths=0.7, label=label, rasterized=len(points) > RASTERIZED, **style)
        x, y = (f"component {n} ({100 * part:.0f} %)" for n, part in enumerate(panel["explained"], start=1))
        axes.set(title=name, xlabel=x, ylabel=y, xticks=[], yticks=[])
        axes.spines[["top", "right"]].set_visible(False)
    if not many:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


PICTURES = (
    Picture(
        "schedule",
        schedule,
        "Prompts in the input of each layer",
        "Every prompt with the layer that it was added before; the darkest are new. Layers count from 0.",
    ),
    Picture(
        "attention",
        attention,
        "Attention of CLS",
        "Mean over images and heads. Prompts that entered three layers before are carried 3.",
    ),
    Picture(
        "geometry",
        geometry,
        "Carried and new prompts",
        "In the input of each layer, mean over images. A carried prompt that is far from itself on entry has been "
        "changed by the layers since, which let it read the patches.",
    ),
    Picture("added", added, "Vectors that enter the image tower", "Cosine similarity of each pair, as they enter."),
    Picture(
        "rollout",
        rollout,
        "Attention roll-out",
        "The parts of the final CLS, by the product of all layers' attention (Abnar and Zuidema, 2020). The "
        "brighter a patch, the larger its share among the patches, on one scale for a row. Above each map: the share "
        "of all patches and of all prompts; the rest is CLS itself.",
    ),
    Picture(
        "features",
        features,
        "Image features",
        "Two principal components of the features of each panel, with the variance that they explain. ",
    ),
)
