"""The results of a study's finished runs as data frames, for `write`, `plots` and `report`."""

import json
import math
import warnings
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.results import MEASURES, OTHER_MEASURES, RunResult
from configs.recipes import recipe
from measures.results import harmonic_mean, several_versions

from .compare import seed_interval, smallest_difference
from .plan import Run, Study
from .study import Variant

# The results of the paper (Huang et al., ICASSP 2025, Tables II and III) with ViT-B/16 and 16
# images of each class: top-1 accuracy in percent by protocol, part, method, and dataset or
# `average`.
PAPER = json.loads(Path(__file__).with_name("published").joinpath("paper_tables.json").read_text())
MEASURED = (*MEASURES, "n_test", "train_seconds", "test_seconds", "device", "backbone")
MARK = "†"
MARKED = f"{MARK}: test images chose the epoch or a setting"  # in tables and pictures


def marked(name: str | None, selected: bool) -> str:
    """A name or number, with the mark if test images selected a result in it."""
    return f"{name} {MARK}" if selected else str(name)


def part_of(run: Run) -> str:
    """The table of its protocol that a run belongs to."""
    if run.protocol == "cross_dataset":
        return "all classes"
    return run.classes if run.protocol == "base2new" else shots_label(run.shots)


def shots_label(shots: int) -> str:
    return f"{shots} shot{'s' if shots > 1 else ''}"


def row_of(run: Run, measured: RunResult) -> dict[str, Any]:
    """A run and its results.json as a row."""
    row: dict[str, Any] = {"protocol": run.protocol, "part": part_of(run)}
    row |= {"method": run.variant.name, "dataset": run.dataset, "shots": run.shots}
    row |= {"seed": run.seed, "trained": run.trains}
    row["selected_on_test"] = measured.selected_on_test
    test = measured.card.test
    row["images"] = test.sha256 if test else None
    row["evaluations"] = test.evaluations if test else None
    row["learned_from"] = measured.learned_from
    row |= {f"AUROC {name}": value for name, value in measured.aurocs.items()}
    row |= measured.other_measures
    return row | {key: getattr(measured, key) for key in MEASURED}


# What ± may be; the first is that of parse_test_res.py, CoOp's and Dassl's.
SPREADS = (
    ("spread", "standard deviation over seeds (population)"),
    ("interval", "half of the 95% t-interval of seeds"),
)


class Summary:
    """The results of a study's finished runs.

    Args:
        results: from `collect_results`; at least one run.
        intervals: whether ± is half of the 95% t-interval over seeds, instead of the standard
            deviation.
    """

    def __init__(self, study: Study, results: dict[Run, RunResult], intervals: bool = False):
        self.study = study
        self.results = results
        # What ± is: a column of `cells`, and its name
        self.spread, self.spread_name = SPREADS[intervals]
        # A row for every finished run: settings, and what its results.json has
        self.runs = pd.DataFrame([row_of(run, measured) for run, measured in results.items()])
        self.variants = {variant.name: variant for variant in study.variants}
        self.by_seed = cache(self.accuracies_by_seed)

    @cached_property
    def of_methods(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        """The runs of each method in each table, by protocol, part and method."""
        return dict(list(self.runs.groupby(["protocol", "part", "method"])))

    @property
    def kinds(self) -> list[str]:
        """The kinds of the study's methods (`Method.kind`)."""
        return list(dict.fromkeys(variant.kind for variant in self.study.variants))

    @property
    def parts(self) -> list[tuple[str, str]]:
        """The tables of the study: (protocol, part)."""
        parts = {"cross_dataset": ["all classes"]}
        parts["few_shot"] = list(map(shots_label, sorted(self.study.shots)))
        parts["base2new"] = ["base", "new", "H", *(["all"] if self.study.union else [])]
        return [(protocol, part) for protocol in self.study.protocols for part in parts[protocol]]

    def main_part(self, protocol: str) -> str:
        """The part that the methods of a protocol are ranked by: H, all classes, or most images of
        each class.
        """
        return [part for each, part in self.parts if each == protocol and part != "all"][-1]

    def averaged(self, protocol: str) -> list[str]:
        """The datasets of the average, which leaves out the source of cross_dataset."""
        return list(self.study.targets if protocol == "cross_dataset" else self.study.datasets)

    def datasets(self, protocol: str) -> list[str]:
        source = [self.study.source] if protocol == "cross_dataset" else []
        return [*source, *self.averaged(protocol)]

    def accuracies_by_seed(self, protocol: str, part: str, method: str) -> pd.DataFrame:
        """Accuracies, seeds x datasets (the source among them) and their average; NaN where a run
        is missing. H of the average is that of the seed's average base and new accuracies, as in
        `means`.
        """
        if part == "H":
            base, new = (self.by_seed(protocol, half, method) for half in ("base", "new"))
            seeds = base.combine(new, lambda one, other: one.combine(other, harmonic_mean))
        else:
            runs = self.of_methods.get((protocol, part, method), self.runs[:0])
            seeds = runs.pivot(index="seed", columns="dataset", values="accuracy")
            seeds = seeds.reindex(columns=self.datasets(protocol))
            averaged = seeds[self.averaged(protocol)]
            seeds["average"] = averaged.mean(axis="columns", skipna=False)
        return seeds

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row for every cell of the tables, missing ones too.

        Columns: protocol, part, method, dataset (or `average`), mean, spread, interval (half the
        95% t-interval over seeds), number of runs (of the average, of seeds with all datasets),
        number of seeds of the study, the paper's result, whether a run was selected on test images,
        kind of the method, rank (1 is best), and the difference from the paper.
        """
        of_methods = [
            self.cells_of(*names, variant)
            for names, variant in product(self.parts, self.study.variants)
        ]
        cells = pd.concat(of_methods, ignore_index=True)
        cells["rank"] = ranks(cells)
        cells["difference"] = cells["mean"] - cells["paper"]
        return cells

    def cells_of(self, protocol: str, part: str, variant: Variant) -> pd.DataFrame:
        """The cells of one method in one table: every dataset, and the average."""
        # The spread of an average is that of complete seeds; its mean is that of all runs, if no
        # dataset is missing.
        accuracies = self.by_seed(protocol, part, variant.name)
        means = self.means(protocol, part, variant.name)
        selected = self.selected(protocol, part, variant.name)
        if selected.intersection(self.averaged(protocol)):
            selected.add("average")
        runs = accuracies.count()
        columns = {"protocol": protocol, "part": part, "method": variant.name}
        columns |= {"dataset": accuracies.columns, "mean": means.array}
        cells = pd.DataFrame(columns)
        cells["spread"] = accuracies.std(ddof=0).where(runs > 1).array
        intervals = [seed_interval(accuracies[name].dropna()) for name in accuracies]
        cells["interval"] = np.ptp(intervals, axis=1) / 2
        cells["runs"] = runs.array
        cells["seeds"] = len(self.study.seeds)
        cells["paper"] = [self.paper(protocol, part, variant, name) for name in accuracies]
        cells["selected_on_test"] = cells["mean"].notna() & cells["dataset"].isin(selected)
        cells["kind"] = variant.kind
        return cells

    def means(self, protocol: str, part: str, method: str) -> pd.Series:
        """Mean accuracies over seeds by dataset, and their average. H is that of the mean base and
        new accuracies.
        """
        if part == "H":
            base, new = (self.means(protocol, half, method) for half in ("base", "new"))
            return base.combine(new, harmonic_mean)
        means = self.by_seed(protocol, part, method).mean()
        means["average"] = means[self.averaged(protocol)].mean(skipna=False)
        return means

    def selected(self, protocol: str, part: str, method: str) -> set[str]:
        """The datasets on which a run of a part of a table was selected on test images."""
        runs = self.runs[self.runs["selected_on_test"]]
        runs = runs[runs["part"].isin(["base", "new"] if part == "H" else [part])]
        return set(runs.query("protocol == @protocol and method == @method")["dataset"])

    def paper(self, protocol: str, part: str, variant: Variant, dataset: str) -> float:
        """The paper's accuracy; NaN if it has none, or another backbone, number of shots, set of
        datasets, source, YAML file or setting."""
        table = PAPER.get(protocol, {}).get(part, {}).get(variant.method, {})
        config = (variant.cross_cfg if protocol == "cross_dataset" else "") or variant.cfg
        overrides = variant.overrides or variant.dataset_overrides or self.study.keys_of(variant)
        source = protocol != "cross_dataset" or self.study.source == "imagenet"
        paper = (self.runs["backbone"] == "ViT-B/16").all() and self.study.shots[-1] == 16
        if not paper or not source or overrides:
            return math.nan
        if table and config and config != recipe(variant.method, protocol).cfg:
            return math.nan
        if dataset == "average" and {*self.averaged(protocol), "average"} != table.keys():
            return math.nan
        return table.get(dataset, math.nan)

    @property
    def focus(self) -> str | None:
        """The variant that the others are compared with: MPL, else MPL's last variant, else the
        last that learns.
        """
        names = [variant.name for variant in self.study.variants if variant.facts.learns]
        of_mpl = [name for name in names if self.variants[name].method == "MPL"]
        last = (of_mpl or names)[-1] if names else None
        return "MPL" if "MPL" in of_mpl else last

    @cached_property
    def tests(self) -> pd.DataFrame:
        """`focus` against every other method, by their differences in accuracy for the same dataset
        and seed.

        Two two-sided tests. For other seeds of these datasets: a paired t-test of the average over
        datasets, where n is the number of seeds that have all of them. For other datasets:
        Wilcoxon's signed-rank test of the datasets' means over seeds, as Demšar (JMLR 2006)
        recommends, where n is the number of datasets. Pooling seeds and datasets would be wrong:
        the runs of one dataset are not independent. p-values need three pairs; a table with none
        has no rows. Those corrected by Holm's method for the comparisons of one table are in
        `holm_*`. `selected_on_test` has those of the two methods that were selected on test images.
        `interval` is that of the difference over seeds, and `smallest` the smallest difference that
        these seeds can show (`compare`).
        """
        rows = []
        for (protocol, part), name in product(self.parts, self.variants):
            if self.focus not in (None, name):
                rows.append(self.test(protocol, part, name))
        tests = pd.DataFrame(rows)
        if tests.empty:
            return tests
        families = ["protocol", "part"]
        p_values = tests[["p_seeds", "p_datasets"]].notna().any(axis="columns")
        shown = p_values.groupby([tests[key] for key in families]).transform("any")
        tests = tests[shown & (tests["datasets"] > 0)].copy()
        for kind in ("seeds", "datasets"):
            tests[f"holm_{kind}"] = tests.groupby(families)[f"p_{kind}"].transform(holm)
        return tests

    def test(self, protocol: str, part: str, against: str) -> dict[str, Any]:
        """A row of `tests`."""
        from scipy import stats  # slow to import

        methods = str(self.focus), against
        ours, theirs = (self.by_seed(protocol, part, method) for method in methods)
        difference = ours - theirs  # seeds x datasets; NaN where a run is missing
        # Rounding errors would break ties
        seeds = difference["average"].dropna().round(9)
        datasets = difference[self.averaged(protocol)].mean().dropna().round(9)
        row: dict[str, Any] = {"protocol": protocol, "part": part, "method": methods[0]}
        row["against"] = against
        row["difference"] = (seeds if len(seeds) else datasets).mean()
        row |= {"seeds": len(seeds), "datasets": len(datasets)}
        row["interval"] = seed_interval(seeds)
        row["smallest"] = smallest_difference(seeds)
        row["p_seeds"] = safe_p_value(stats.ttest_1samp, seeds, popmean=0)
        row["p_datasets"] = safe_p_value(stats.wilcoxon, datasets)
        selected = {method: self.selected(protocol, part, method) for method in methods}
        row["selected_on_test"] = [
            method for method in methods if selected[method].intersection(datasets.index)
        ]
        return row

    @cached_property
    def times(self) -> pd.DataFrame:
        """Mean training time of a run in seconds, separately for each device."""
        trained = self.runs[self.runs["trained"]].dropna(subset="train_seconds")
        groups = trained.groupby(["protocol", "part", "method", "device"], sort=False)
        return groups["train_seconds"].agg(seconds="mean", runs="count").reset_index()

    @cached_property
    def measures(self) -> pd.DataFrame:
        """What else the tests measured, a row for each method of each table: the means of its runs
        over the datasets of the average; NaN where a run did not record it. `AUROC <name>` is that
        of MCM for a dataset of --ood.
        """
        more = (name for name in self.runs if name in OTHER_MEASURES or name.startswith("AUROC "))
        columns = [*MEASURES, *more]
        rows = []
        for (protocol, part), name in product(self.parts, self.variants):
            runs = self.runs.query("protocol == @protocol and part == @part and method == @name")
            means = runs.groupby("dataset")[columns].agg(
                lambda values: values.astype(float).mean(skipna=False)
            )
            averaged = means.reindex(self.averaged(protocol)).mean(skipna=False)
            if len(runs):
                rows.append({"protocol": protocol, "part": part, "method": name, **averaged})
        return pd.DataFrame(rows)

    @property
    def warnings(self) -> list[str]:
        """Notes for readers of the tables."""
        notes = []
        devices = sorted(self.runs["device"].dropna().unique())
        if len(devices) > 1:
            fact = f"the runs are from {len(devices)} devices ({', '.join(devices)})"
            notes.append(f"{fact}: each has its own average times")
        notes += filter(None, [several_versions(self.results.values())])
        if selected := self.runs["selected_on_test"].sum():
            fact = f"{selected} of {len(self.runs)} runs were selected on test images"
            notes.append(f"{fact}, their results have the mark {MARK}")
        for lists, words in {"images": "were tested on", "learned_from": "learned from"}.items():
            groups = (
                self.runs.dropna(subset=lists)
                .groupby(["protocol", "part", "dataset", "seed"])[lists]
                .nunique()
            )
            if differ := sorted(set(groups[groups > 1].index.get_level_values("dataset"))):
                notes.append(
                    f"runs on {', '.join(differ)} {words} different images: their results do not "
                    "compare"
                )
        return notes

    def records(self) -> dict:
        """Everything, for JSON; missing values are null."""
        frames = {"cells": self.cells, "tests": self.tests, "times": self.times, "runs": self.runs}
        frames["measures"] = self.measures
        tables = {
            name: json.loads(one.to_json(orient="records", double_precision=15))
            for name, one in frames.items()
        }
        words = {"unit": "top-1 accuracy, percent", "spread": "population std"}
        words["H"] = "of the mean accuracies"
        return words | {"warnings": self.warnings} | tables


def ranks(cells: pd.DataFrame) -> pd.Series:
    """The rank of each cell in its column, 1 for the largest mean; numbers that look equal have the
    same rank.

    Cells are ranked among methods of their kind. Those that were selected on test images are ranked
    only among such cells, and no cell without a rival.
    """
    column = [cells[key] for key in ("protocol", "part", "dataset", "kind")]
    present = cells["mean"].notna()
    honest = present & ~cells["selected_on_test"]
    among = honest.where(honest.groupby(column).transform("any"), present)
    ranked = among & (among.groupby(column).transform("sum") > 1)
    return as_shown(cells["mean"]).where(ranked).groupby(column).rank("dense", ascending=False)


def as_shown(accuracies: Any) -> Any:
    """A series or a frame of numbers as tables print them: pandas' own `round` can differ for a
    last digit of 5.
    """
    return accuracies.map("{:.2f}".format).astype(float)


def holm(p: pd.Series) -> pd.Series:
    """p-values corrected for their number (Holm, 1979): p in ascending order times m, m - 1, ...;
    NaN stays NaN.
    """
    ordered = p.dropna().sort_values()
    factors = pd.Series(range(len(ordered), 0, -1), index=ordered.index)
    return (ordered * factors).cummax().clip(upper=1).reindex(p.index)


def safe_p_value(test, differences: pd.Series, **options) -> float:
    """The p-value of a test; NaN for fewer than three differences, or if all are 0."""
    if len(differences) < 3 or not differences.any():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about few or equal differences: the tables show n
        return float(test(differences, **options).pvalue)
