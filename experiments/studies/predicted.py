"""Pictures of a study from the predictions of its tests (predictions.npz); without them there are none."""

from collections import defaultdict
from functools import lru_cache
from itertools import cycle, product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.errors import UsageError

from .. import predictions
from ..outcomes import Outcome, draw_confusion, draw_pairs, draw_reliability, draw_risk
from .panels import COLOURS, LINES, MARKERS, legend, plot_styles, subplots_grid
from .tables import Summary, part_of

Outcomes = dict[tuple[str, str, str, str], Outcome]  # by protocol, part, method and dataset
SHOWN = 2  # confused pairs of a dataset


@lru_cache(maxsize=1)
def read_outcomes(summary: Summary) -> Outcomes:
    """The predictions of all finished runs, those of all seeds together. Runs without readable predictions, and those
    of other classes than the first seed's, are left out."""
    found: Outcomes = {}
    for run in summary.results:
        try:
            arrays = predictions.read(run.folder)
        except UsageError:
            continue
        key = run.protocol, part_of(run), run.variant.name, run.dataset
        names = [str(name) for name in arrays["class_names"]]
        if found.setdefault(key, Outcome(names)).names == names:
            found[key].add(arrays)
    in_order = (
        (protocol, part, method, dataset)
        for (protocol, part), method in product(summary.parts, summary.variants)
        for dataset in summary.datasets(protocol)
    )
    return {key: found[key] for key in in_order if key in found}


def judged(summary: Summary) -> dict[str, str]:
    """The part of each protocol that its methods are judged by: new classes, or most images of each class."""
    parts = defaultdict(list)
    for protocol, part in summary.parts:
        parts[protocol].append(part)
    return {protocol: "new" if "new" in found else found[-1] for protocol, found in parts.items()}


def reliability(summary: Summary, narrow: bool = False) -> Figure | None:
    """Reliability: accuracy against confidence in 15 bins, all datasets and seeds together. Below the diagonal a method
    is too confident, above it not confident enough. Bins with fewer than ten images are left out."""
    panels: dict[tuple[str, str], dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for (protocol, part, method, _), found in read_outcomes(summary).items():
        panels[protocol, method][part].append(found)
    if not panels:
        return None
    looks = zip(cycle(MARKERS), cycle(("-", *LINES)), cycle(COLOURS), strict=False)
    styles: dict[str, Any] = dict(zip({part: 0 for parts in panels.values() for part in parts}, looks, strict=False))
    figure, axes = subplots_grid(len(panels), 3.2, 3.4, 4, narrow)
    for ax, ((protocol, method), parts) in zip(axes, panels.items(), strict=True):
        for part, outcomes in parts.items():
            marker, line, colour = styles[part]
            bins = np.sum([each.bins for each in outcomes], axis=0)
            draw_reliability(ax, bins, marker=marker, linestyle=line, color=colour, markersize=4, label=part)
        ax.set_title(f"{method}\n{protocol}", fontsize=10, parse_math=False)
    legend(figure, axes, narrow)
    return figure


def risk_coverage(summary: Summary, narrow: bool = False) -> Figure | None:
    """Risk against coverage: the error on the images that a method is most sure of, mean over datasets and seeds. A
    lower curve knows better which of its predictions are right."""
    panels: dict[tuple[str, str], dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for (protocol, part, method, _), found in read_outcomes(summary).items():
        panels[protocol, part][method] += found.risks
    if not panels:
        return None
    styles = plot_styles(summary)
    figure, axes = subplots_grid(len(panels), 4.2, 3.4, 3, narrow)
    for ax, ((protocol, part), methods) in zip(axes, panels.items(), strict=True):
        for method, risks in methods.items():
            draw_risk(ax, risks, **styles[method])
        ax.set_title(f"{protocol}, {part}")
    legend(figure, axes, narrow)
    return figure


def class_accuracy(summary: Summary, narrow: bool = False) -> Figure | None:
    """Accuracy by class, sorted, of all seeds together: the left end has the worst classes of each method."""
    panels: dict[tuple[str, str, str], dict[str, Outcome]] = defaultdict(dict)
    for (protocol, part, method, dataset), found in read_outcomes(summary).items():
        if judged(summary)[protocol] == part:
            panels[protocol, part, dataset][method] = found
    if not panels:
        return None
    styles = plot_styles(summary)
    figure, axes = subplots_grid(len(panels), narrow=narrow)
    for ax, ((protocol, part, dataset), methods) in zip(axes, panels.items(), strict=True):
        for method, found in methods.items():
            values = [value for _, value in found.recalls()]
            every = max(1, len(values) // 8)
            ax.plot(np.arange(1, len(values) + 1), values, markevery=every, **styles[method])
        ax.set(title=f"{dataset}\n{protocol}, {part}", xlabel="class, from the worst", ylabel="accuracy (%)")
        ax.set(ylim=(0, 102))
        ax.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, axes, narrow)
    return figure


def of_focus(summary: Summary) -> dict[tuple[str, str], Outcome]:
    """The outcomes of one method, `Summary.focus`, by protocol and dataset, on the main part of each protocol."""
    return {
        (protocol, dataset): found
        for (protocol, part, method, dataset), found in read_outcomes(summary).items()
        if method == summary.focus and judged(summary)[protocol] == part
    }


def confusion(summary: Summary, narrow: bool = False) -> Figure | None:
    """Confusion of the method that the others are compared with, all seeds together: classes by predicted classes, in
    the share of the images of a class; black is all of them."""
    panels = of_focus(summary)
    if not panels:
        return None
    figure, axes = subplots_grid(len(panels), 4.2, 4.4, 3, narrow)
    for ax, ((protocol, dataset), found) in zip(axes, panels.items(), strict=True):
        draw_confusion(ax, found)
        ax.set_title(f"{summary.focus}: {dataset}\n{protocol}, {judged(summary)[protocol]}", parse_math=False)
    return figure


def worst_pairs(summary: Summary, narrow: bool = False) -> Figure | None:
    """The most frequent wrong predictions of this method, and the images on which it is most sure of them: class,
    predicted class, and how many of the images of the class."""
    rows = [
        (f"{dataset}: {protocol}, {judged(summary)[protocol]}", pair)
        for (protocol, dataset), found in of_focus(summary).items()
        for pair in found.pairs(SHOWN)
    ]
    if not rows:
        return None
    return draw_pairs(rows, summary.study.root, 1 if narrow else SHOWN)
