"""Tables of a study: whatever of it is there."""

from collections.abc import Sequence

import pandas as pd

from tools.base2new import harmonic_mean, read_results
from tools.runs import Study


def collect(study: Study) -> pd.DataFrame:
    """A row for every finished run: what it was and what results.json says of it."""
    rows = []
    for run in (run for chain in study.chains() for run in chain):
        results = read_results(run.folder)
        if results:
            what = {
                "protocol": run.protocol,
                "method": run.variant.name,
                "dataset": run.dataset,
                "classes": run.classes,
            }
            measured = {key: results[key] for key in ("accuracy", "n_test", "train_seconds", "test_seconds", "device")}
            rows.append(what | {"shots": run.shots, "seed": run.seed} | measured)
    return pd.DataFrame(rows)


def markdown(study: Study, frame: pd.DataFrame) -> str:
    """One table a protocol: means over seeds, with the population standard deviation; missing cells are `-`."""
    parts = []
    for protocol in study.protocols:
        runs = frame[frame["protocol"] == protocol]
        if len(runs):
            parts.append(f"## {protocol}, accuracy in %\n\n{TABLES[protocol](study, runs)}\n")
    return "\n".join(parts)


def cell(values: pd.Series) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=0):.1f}" if len(values) else "-"


def rows(study: Study, columns: list[str], entry) -> str:
    """Markdown of methods x columns; `entry(method, column)` is a cell's text."""
    lines = [f"| method | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for variant in study.variants:
        lines.append(f"| {variant.name} | {' | '.join(entry(variant.name, column) for column in columns)} |")
    return "\n".join(lines)


def base2new(study: Study, runs: pd.DataFrame) -> str:
    """Base, new, and H of their means, for every dataset and for the average over datasets."""
    means = runs.groupby(["method", "dataset", "classes"])["accuracy"].mean()

    def halves(method: str, dataset: str) -> list[float]:
        return [means.get((method, dataset, half), float("nan")) for half in ("base", "new")]

    def entry(method: str, figure: str, dataset: str) -> str:
        if dataset == "average":
            every = pd.DataFrame([halves(method, name) for name in study.datasets])
            base, new = every.mean(skipna=False)
        else:
            base, new = halves(method, dataset)
        value = {"base": base, "new": new, "H": harmonic_mean(base, new)}[figure]
        if pd.isna(value):
            return "-"
        if figure == "H" or dataset == "average":
            return f"{value:.1f}"
        chosen = runs[(runs["method"] == method) & (runs["dataset"] == dataset) & (runs["classes"] == figure)]
        return cell(chosen["accuracy"])

    parts = []
    for dataset in (*study.datasets, "average"):
        table = rows(
            study, ["base", "new", "H"], lambda method, figure, dataset=dataset: entry(method, figure, dataset)
        )
        parts.append(f"### {dataset}\n\n{table}\n")
    return "\n".join(parts)


def by_dataset(study: Study, runs: pd.DataFrame, datasets: Sequence[str], averaged: Sequence[str]) -> str:
    """One accuracy for every dataset, and the average of some."""

    def entry(method: str, dataset: str) -> str:
        own = runs[runs["method"] == method]
        if dataset != "average":
            return cell(own[own["dataset"] == dataset]["accuracy"])
        means = own.groupby("dataset")["accuracy"].mean().reindex(averaged)
        return "-" if means.isna().any() else f"{means.mean():.1f}"

    return rows(study, [*datasets, "average"], entry)


def cross_dataset(study: Study, runs: pd.DataFrame) -> str:
    """The source, every target, and the average of the targets."""
    return by_dataset(study, runs, [study.source, *study.targets], study.targets)


def few_shot(study: Study, runs: pd.DataFrame) -> str:
    """A table for every number of shots."""
    parts = []
    for shots in study.shots:
        table = by_dataset(study, runs[runs["shots"] == shots], study.datasets, study.datasets)
        parts.append(f"### {shots} shots\n\n{table}\n")
    return "\n".join(parts)


TABLES = {"base2new": base2new, "cross_dataset": cross_dataset, "few_shot": few_shot}
