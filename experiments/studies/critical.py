"""The methods of one kind compared over datasets: Friedman's test, and Nemenyi's critical difference of ranks."""

import math
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from common.errors import UsageError

from ..comparing import LEVEL
from .tables import Summary, as_shown

METHODS, DATASETS = 3, 5  # fewer methods have a test of two; with fewer datasets the tests find almost nothing


class Ranking(NamedTuple):
    """The ranks of methods over datasets.

    Attributes:
        ranks: average rank by method, ascending; 1 is the best. Equal accuracies (two decimals) share their ranks.
        datasets: their number.
        p: of Friedman's test, that all methods have the same ranks.
        difference: average ranks that differ by less are not shown to differ (Nemenyi); infinite if p is above 0.05.
    """

    ranks: pd.Series
    datasets: int
    p: float
    difference: float


def ranking(summary: Summary, protocol: str, part: str, kind: str) -> Ranking:
    """The ranks of the methods of a kind (`Method.kind`) with a result on every dataset of the average, none of them
    selected on test images.

    Raises:
        UsageError: there are too few methods or datasets.
    """
    from scipy.stats import friedmanchisquare, studentized_range  # slow to import

    cells = summary.cells.query("protocol == @protocol and part == @part and kind == @kind")
    selected = cells.loc[cells["selected_on_test"], "method"]
    cells = cells[cells["dataset"].isin(summary.averaged(protocol)) & ~cells["method"].isin(selected)]
    means = as_shown(cells.pivot(index="method", columns="dataset", values="mean").dropna())
    methods, datasets = means.shape
    if methods < METHODS or datasets < DATASETS:
        what = f"{protocol}, {part} has {methods} complete {kind} methods and {datasets} datasets"
        raise UsageError(what, f"a comparison over datasets needs {METHODS} and {DATASETS}")
    ranks = means.rank(ascending=False).mean(axis="columns").sort_values(kind="stable")
    p = float(friedmanchisquare(*means.to_numpy()).pvalue)
    quantile = studentized_range.ppf(LEVEL, methods, math.inf) / math.sqrt(2)
    difference = quantile * math.sqrt(methods * (methods + 1) / (6 * datasets)) if p < 1 - LEVEL else math.inf
    return Ranking(ranks, datasets, p, difference)


def groups(found: Ranking) -> list[tuple[int, int]]:
    """The first and the last place of each largest group of methods that are not shown to differ."""
    ranks, largest = found.ranks.to_list(), list[tuple[int, int]]()
    for first, rank in enumerate(ranks):
        last = max(place for place, other in enumerate(ranks) if other - rank < found.difference)
        if last > first and (not largest or last > largest[-1][1]):
            largest.append((first, last))
    return largest


def draw_ranking(ax: Axes, found: Ranking) -> None:
    """A row for each method, the best at the top; a bar at the right for each group of `groups`."""
    ax.plot(found.ranks, range(len(found.ranks)), "ko", clip_on=False)
    ax.hlines(range(len(found.ranks)), 1, found.ranks, color="0.8", linewidth=1, zorder=0)
    for number, (first, last) in enumerate(groups(found)):
        ax.vlines(len(found.ranks) + 0.3 + 0.3 * number, first - 0.2, last + 0.2, color="black", linewidth=3)
    ax.set_yticks(range(len(found.ranks)), found.ranks.index)
    ax.invert_yaxis()
    difference = "" if math.isinf(found.difference) else f", CD = {found.difference:.2f}"
    ax.set_xlabel(f"average rank over {found.datasets} datasets\n(Friedman p = {found.p:.2g}{difference})")
