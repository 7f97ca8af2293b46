"""The methods of one kind compared over datasets: Friedman's test, and Nemenyi's critical
difference of ranks.
"""

import math
from typing import NamedTuple

import pandas as pd

from .comparing import LEVEL
from .tables import Summary, as_shown

# Fewer methods have a test of two; with fewer datasets the tests find almost nothing
METHODS = 3
DATASETS = 5


class Ranking(NamedTuple):
    """The ranks of methods over datasets (Demšar, JMLR 2006)."""

    # Average rank by method, ascending; accuracies equal to two decimals share theirs
    ranks: pd.Series
    datasets: int  # their number
    # Of Friedman's test, that all methods have the same ranks; 1 if they are equal on every dataset
    p: float
    difference: float  # average ranks that differ by less are not shown to differ (Nemenyi at 5%)


def ranking(summary: Summary, protocol: str, part: str, kind: str) -> Ranking | None:
    """The ranks of the methods of a kind (`Method.kind`) with a result on every dataset of the
    average, none of them selected on test images; None for too few methods or datasets."""
    from scipy.stats import friedmanchisquare, studentized_range  # slow to import

    cells = summary.cells.query("protocol == @protocol and part == @part and kind == @kind")
    selected = cells.loc[cells["selected_on_test"], "method"]
    cells = cells[
        cells["dataset"].isin(summary.averaged(protocol)) & ~cells["method"].isin(selected)
    ]
    means = as_shown(cells.pivot(index="method", columns="dataset", values="mean").dropna())
    methods, datasets = means.shape
    if methods < METHODS or datasets < DATASETS:
        return None
    ranks = means.rank(ascending=False).mean(axis="columns").sort_values(kind="stable")
    p = float(friedmanchisquare(*means.to_numpy()).pvalue) if (means.nunique() > 1).any() else 1.0
    quantile = studentized_range.ppf(LEVEL, methods, math.inf) / math.sqrt(2)
    return Ranking(
        ranks, datasets, p, quantile * math.sqrt(methods * (methods + 1) / (6 * datasets))
    )
