"""Paired differences of one method to the others, as a picture."""

import pandas as pd
from matplotlib.figure import Figure

from .render import select
from .style import subplots_grid
from .tables import MARK, Summary


def paired_differences(summary: Summary) -> Figure | None:
    """A panel for each part of each protocol: `Summary.focus` minus every other method.

    Dots are the datasets' means over seeds or, with one dataset, the seeds; n is their number. p is that of the tables.
    """
    panels = {}
    for names in summary.parts if len(summary.tests) else ():
        tests = select(summary.tests, *names)
        if len(tests):
            panels[names] = tests
    if not panels:
        return None
    most = max(map(len, panels.values()))
    figure, axes = subplots_grid(len(panels), 4.8, 1.3 + 0.36 * most, columns=3)
    for ax, ((protocol, part), tests) in zip(axes, panels.items(), strict=True):
        for row, test in enumerate(tests.itertuples()):
            pairs = differences(summary, protocol, part, test.against)
            ax.plot(pairs, [row] * len(pairs), "o", color="0.45", markerfacecolor="none", markersize=5)
            ax.plot([test.difference], [row], "D", color="black", markersize=6)
            corrected = test.holm_datasets if test.datasets > 1 else test.holm_seeds
            p = "" if pd.isna(corrected) else f", p {corrected:.3f}"
            ax.annotate(f"n={len(pairs)}{p}", (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        ax.axvline(0, color="black", linewidth=0.8)
        marked = [set(methods) for methods in tests["selected_on_test"]]
        others = [f"{name} {MARK}" if name in of else name for name, of in zip(tests["against"], marked, strict=True)]
        ax.set_yticks(range(len(tests)), others)
        ax.set_ylim(len(tests) - 0.5, -0.5)
        focus = f"{summary.focus} {MARK}" if any(summary.focus in of for of in marked) else summary.focus
        ax.set(title=f"{protocol}, {part}", xlabel=f"{focus} minus the other (points)")
    return figure


def differences(summary: Summary, protocol: str, part: str, other: str) -> pd.Series:
    """The paired differences: of datasets, or of seeds if there is one dataset."""
    both = [summary.by_seed(protocol, part, name)[summary.averaged(protocol)] for name in (str(summary.focus), other)]
    pairs = both[0] - both[1]
    return pairs.mean().dropna() if pairs.shape[1] > 1 else pairs.iloc[:, 0].dropna()
