"""The findings about a model as files: inspect.json, pictures in grey for screen and print, and
inspect.html.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from common.files import write_json, write_text
from common.pages import render, save_picture
from common.version import made

from .tower import highlighted, shares_text

MOST_WORDS = 300  # rows of the page's table
LONGEST = 32  # characters of a name in a picture


def write(content: dict[str, Any], images: Tensor, folder: Path) -> None:
    """Write what `Measures.summary` returns; `images` are those of the roll-out, (images, 3, H, W),
    from 0 to 1.
    """
    write_json(folder / "inspect.json", content | {"made": made()}, allow_nan=False)
    pictures = {}  # name -> address, of those that the content allows
    for name, key, draw in (("schedule", "schedule", schedule), ("attention", "layers", attention)):
        if content[key]:
            pictures[name] = save_picture(draw(content[key]), folder / name)
    if content["rollout"]:
        pictures["rollout"] = save_picture(rollout(content["rollout"], images), folder / "rollout")
    words = content["words"][:MOST_WORDS]
    page = render(
        Path(__file__).with_name("page.html"), content=content, pictures=pictures, words=words
    )
    write_text(folder / "inspect.html", page)


def grey_maps(panels: Mapping[str, pd.DataFrame], form: str) -> Figure:
    """Maps with a row for each group and a column for each layer, dark where a value is high; nan
    is an empty cell.

    `panels` are values by title, one below another; `form` is the format of the numbers.
    """
    heights = [2 + len(values) for values in panels.values()]
    width = max(len(values.columns) for values in panels.values())
    figure = Figure(figsize=(2.2 + 0.55 * width, 0.3 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, (title, values) in zip(axes, panels.items(), strict=True):
        draw_map(panel, values, form)
        panel.set_title(title)
    axes[-1].set_xlabel("layer")
    return figure


def draw_map(panel: Axes, values: pd.DataFrame, form: str) -> None:
    """One of the maps, with its numbers."""
    largest = max(np.nanmax(values), 1e-6)
    norm = PowerNorm(0.5, vmin=0, vmax=largest, clip=True)
    panel.imshow(values, cmap="Greys", aspect="auto", norm=norm)
    panel.set_xticks(range(len(values.columns)))
    panel.set_yticks(range(len(values)), values.index)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    style: Any = {"ha": "center", "va": "center", "fontsize": 8}
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "white" if value > 0.3 * largest else "black"
            panel.text(column, row, format(value, form), color=color, **style)


def schedule(towers: Mapping[str, Sequence[Sequence[int]]]) -> Figure:
    """The age of each prompt in the input of each layer."""
    panels = {}
    for tower, layers in towers.items():
        ages = [
            dict(enumerate(layer - origin for origin in entered))
            for layer, entered in enumerate(layers)
        ]
        panels[f"{tower} tower"] = pd.DataFrame(ages).T
    return grey_maps(panels, ".0f")


MEASURES = {
    "share": "share of CLS's attention",
    "times_equal": "attention to one token, as a multiple of equal attention to all",
    "cosine_to_entry": "cosine similarity of carried prompts with themselves on entry",
}


def attention(layers: Sequence[dict[str, Any]]) -> Figure:
    """Of each group of tokens CLS's attention and, of carried prompts, how much they have
    changed.
    """
    panels = {}
    for key, title in MEASURES.items():
        known = [
            {name: group[key] for name, group in layer["groups"].items() if key in group}
            for layer in layers
        ]
        if any(known):
            panels[title] = pd.DataFrame(known).T
    return grey_maps(panels, ".2f")


def rollout(rows: Sequence[dict[str, Any]], images: Tensor) -> Figure:
    """Each image, and the same with its patches highlighted by their shares, for each of the
    towers.
    """
    towers = rows[0]["shares"]
    figure = Figure(figsize=(2.3 * (1 + len(towers)), 2.45 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), 1 + len(towers), squeeze=False)
    for axes, row, image in zip(grid, rows, images, strict=True):
        axes[0].imshow(image.permute(1, 2, 0).numpy())
        axes[0].set_title(row["image"][-LONGEST:], fontsize=8, parse_math=False)
        for panel, (name, found) in zip(axes[1:], row["shares"].items(), strict=True):
            panel.imshow(highlighted(image, found).permute(1, 2, 0).numpy())
            panel.set_title(f"{name}\n{shares_text(found)}", fontsize=8)
        for panel in axes:
            panel.set_axis_off()
    return figure
