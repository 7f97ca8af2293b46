"""The methods of one kind compared over datasets: Friedman's test, and Nemenyi's critical difference of ranks."""

import math
from typing import NamedTuple

import pandas as pd

from common.errors import UsageError

from ..comparing import LEVEL
from .tables import Summary, as_shown

METHODS, DATASETS = 3, 5  # fewer methods have a test of two; with fewer datasets the tests find almost nothing


class Ranking(NamedTuple):
    """The ranks of methods over datasets.

    Attributes:
        means: accuracies as tables show them, methods x datasets.
        ranks: average rank by method, ascending; 1 is the best. Equal accuracies (two decimals) share their ranks.
        p: of Friedman's test, that all methods have the same ranks; 1 if they are equal on every dataset.
        difference: average ranks that differ by less are not shown to differ (Nemenyi); infinite if p is above 0.05.
    """

    means: pd.DataFrame
    ranks: pd.Series
    p: float
    difference: float

    @property
    def datasets(self) -> int:
        return self.means.shape[1]


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
    p = float(friedmanchisquare(*means.to_numpy()).pvalue) if (means.nunique() > 1).any() else 1.0
    quantile = studentized_range.ppf(LEVEL, methods, math.inf) / math.sqrt(2)
    difference = quantile * math.sqrt(methods * (methods + 1) / (6 * datasets)) if p < 1 - LEVEL else math.inf
    return Ranking(means, ranks, p, difference)
