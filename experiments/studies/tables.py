"""The figures of a study, whatever of it is there: as data, which tools.render prints and tools.plots draws."""

import json
import math
import warnings
from functools import cached_property
from itertools import product

import pandas as pd
from scipy import stats

from ..results import harmonic_mean
from .reported import BACKBONE, SHOTS, reported
from .spec import Run, Study, Variant

MEASURED = ("accuracy", "n_test", "train_seconds", "test_seconds", "device", "backbone")
Z95 = 1.96


def part(run: Run) -> str:
    """Which of its protocol's tables a run belongs to."""
    return {"base2new": run.classes, "cross_dataset": "all classes", "few_shot": counted(run.shots)}[run.protocol]


def counted(shots: int) -> str:
    return f"{shots} shot{'s' if shots > 1 else ''}"


def frame(results: dict[Run, dict]) -> pd.DataFrame:
    """A row for every finished run: what it was and what results.json says of it."""
    rows = []
    for run, measured in results.items():
        names = {"protocol": run.protocol, "part": part(run), "method": run.variant.name, "dataset": run.dataset}
        what = {"shots": run.shots, "seed": run.seed, "trained": "--eval-only" not in run.arguments}
        rows.append(names | what | {key: measured.get(key) for key in MEASURED})
    return pd.DataFrame(rows)


class Summary:
    """What the finished runs of a study amount to.

    Attributes:
        study, results: what was given, as from `tools.progress.collect`; at least one run.
        runs: the same, a row for each.
        ci95: whether `spread` is 1.96 standard deviations over the root of their number instead of one of them.
        values: an accuracy in percent for every (protocol, part, method, dataset, seed): of its run, and H of two.
    """

    def __init__(self, study: Study, results: dict[Run, dict], ci95: bool = False):
        self.study, self.results, self.ci95 = study, results, ci95
        self.runs = runs = frame(results)
        self.variants = {variant.name: variant for variant in study.variants}
        names = ["protocol", "part", "method", "dataset", "seed"]
        halves = runs[runs["protocol"] == "base2new"].pivot(
            index=["protocol", "method", "dataset", "seed"], columns="part", values="accuracy"
        )
        halves = halves.reindex(columns=["base", "new"]).dropna()
        means = [harmonic_mean(*pair) for pair in halves.itertuples(index=False)]
        both = halves.assign(accuracy=means, part="H").reset_index()[[*names, "accuracy"]]
        self.values = pd.concat([runs[[*names, "accuracy"]], both] if len(both) else [runs[[*names, "accuracy"]]])

    @property
    def parts(self) -> list[tuple[str, str]]:
        """The tables of the study: (protocol, part)."""
        several = {
            "base2new": ["base", "new", "H"],
            "cross_dataset": ["all classes"],
            "few_shot": list(map(counted, self.study.shots)),
        }
        return [(protocol, part) for protocol in self.study.protocols for part in several[protocol]]

    def averaged(self, protocol: str) -> list[str]:
        """The datasets that an average is over: the source of cross_dataset is not among them."""
        return list(self.study.targets if protocol == "cross_dataset" else self.study.datasets)

    def datasets(self, protocol: str) -> list[str]:
        source = [self.study.source] if protocol == "cross_dataset" else []
        return [*source, *self.averaged(protocol)]

    def by_seed(self, protocol: str, part: str, method: str) -> pd.DataFrame:
        """Accuracies, seeds x datasets (the source among them); NaN where a run is missing."""
        values = self.values
        own = values[(values["protocol"] == protocol) & (values["part"] == part) & (values["method"] == method)]
        return own.pivot(index="seed", columns="dataset", values="accuracy").reindex(columns=self.datasets(protocol))

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row for every cell of the tables, missing ones too: protocol, part, method, dataset or `average`, its mean
        and spread over so many runs of so many seeds, its rank (1 is best), the paper's figure, and the difference."""
        rows = []
        for (protocol, part), variant in product(self.parts, self.study.variants):
            accuracies = self.by_seed(protocol, part, variant.name)
            averaged = self.averaged(protocol)
            columns = {dataset: accuracies[dataset].dropna() for dataset in accuracies}
            # The spread of an average is that of whole seeds; its mean is of all runs, where no dataset is missing.
            columns["average"] = accuracies[averaged].dropna().mean(axis="columns")
            means = {dataset: column.mean() for dataset, column in columns.items()}
            means["average"] = pd.Series([means[dataset] for dataset in averaged]).mean(skipna=False)
            counts = {dataset: len(column) for dataset, column in columns.items()}
            counts["average"] = min(counts[dataset] for dataset in averaged)
            for dataset, column in columns.items():
                rows.append(
                    {
                        "protocol": protocol,
                        "part": part,
                        "method": variant.name,
                        "dataset": dataset,
                        "mean": means[dataset],
                        "spread": self.spread(column),
                        "runs": counts[dataset],
                        "seeds": len(self.study.seeds),
                        "paper": self.paper(protocol, part, variant, dataset),
                    }
                )
        cells = self.with_harmonic_means(pd.DataFrame(rows))
        shown = cells["mean"].round(2)  # what looks equal is equal
        cells["rank"] = shown.groupby([cells[key] for key in ("protocol", "part", "dataset")]).rank(
            "dense", ascending=False
        )
        cells["difference"] = cells["mean"] - cells["paper"]
        return cells

    def spread(self, column: pd.Series) -> float:
        """Of accuracies over seeds; NaN of fewer than two."""
        if len(column) < 2:
            return math.nan
        return column.std(ddof=0) * (Z95 / math.sqrt(len(column)) if self.ci95 else 1)

    def with_harmonic_means(self, cells: pd.DataFrame) -> pd.DataFrame:
        """H of the mean base and the mean new accuracy, in place of the mean of H over seeds."""
        keys = ["protocol", "method", "dataset"]
        means = cells[cells["part"].isin(["base", "new"])].pivot(index=keys, columns="part", values="mean")
        for index, cell in cells[cells["part"] == "H"].iterrows():
            cells.loc[index, "mean"] = harmonic_mean(*means.loc[tuple(cell[keys]), ["base", "new"]])
        return cells

    def paper(self, protocol: str, part: str, variant: Variant, dataset: str) -> float:
        """The paper's figure, if these runs are of its backbone and its number of shots."""
        alike = (self.runs["backbone"] == BACKBONE).all() and self.study.shots[-1] == SHOTS
        return reported(protocol, part, variant, dataset, self.averaged(protocol)) if alike else math.nan

    @property
    def focus(self) -> str | None:
        """The method that the others are compared with: the one called MPL, or the last of MPL's variants."""
        names = [variant.name for variant in self.study.variants if variant.method == "MPL"]
        return "MPL" if "MPL" in names else (names or [None])[-1]

    @cached_property
    def tests(self) -> pd.DataFrame:
        """MPL against every other method, by their differences in accuracy for the same dataset and seed.

        Two questions, two tests, both two-sided. Would other seeds say the same of these datasets? A paired t-test of
        the average over datasets: n is the number of seeds that have all of them. Would other datasets? Wilcoxon's
        signed-rank test of the datasets' means over seeds, as Demšar (JMLR 2006) advises: n is the number of datasets.
        Pooling seeds x datasets would count runs of one dataset as independent, which they are not.
        """
        rows = []
        for (protocol, part), name in product(self.parts, self.variants if self.focus else ()):
            pair = [self.by_seed(protocol, part, method)[self.averaged(protocol)] for method in (self.focus, name)]
            difference = pair[0] - pair[1]
            if name == self.focus or difference.isna().all(axis=None):
                continue
            seeds, datasets = difference.dropna().mean(axis="columns"), difference.mean().dropna()
            rows.append(
                {
                    "protocol": protocol,
                    "part": part,
                    "method": self.focus,
                    "against": name,
                    "difference": datasets.mean(),
                    "seeds": len(seeds),
                    "datasets": len(datasets),
                    "p_seeds": p_value(stats.ttest_1samp, seeds, popmean=0),
                    "p_datasets": p_value(stats.wilcoxon, datasets),
                }
            )
        return pd.DataFrame(rows)

    @cached_property
    def times(self) -> pd.DataFrame:
        """Mean seconds of training a run, never over different devices: a row for each."""
        trained = self.runs[self.runs["trained"]]
        groups = trained.groupby(["protocol", "part", "method", "device"], sort=False)["train_seconds"]
        return groups.agg(["mean", "count"]).rename(columns={"mean": "seconds", "count": "runs"}).reset_index()

    @property
    def warnings(self) -> list[str]:
        """What a reader of the tables should know."""
        devices = sorted(self.runs["device"].dropna().unique())
        several = f"the runs are from {len(devices)} devices ({', '.join(devices)}): times are averaged for each alone"
        return [several] if len(devices) > 1 else []

    def records(self) -> dict:
        """Everything, for JSON; what is missing is null."""
        frames = {"cells": self.cells, "tests": self.tests, "times": self.times, "runs": self.runs}
        spread = "1.96 std / sqrt(n)" if self.ci95 else "population std"
        tables = {
            name: json.loads(frame.to_json(orient="records", double_precision=15)) for name, frame in frames.items()
        }
        return {"unit": "top-1 accuracy, percent", "spread": spread, "warnings": self.warnings} | tables


def p_value(test, differences: pd.Series, **options) -> float:
    """NaN where there is nothing to test: fewer than two differences, or none that is not 0."""
    if len(differences) < 2 or not differences.any():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few or equal differences: n stands beside the result
        return float(test(differences, **options).pvalue)
