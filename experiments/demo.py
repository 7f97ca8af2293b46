"""Prompt learning on a laptop: methods from base to new classes of a synthetic dataset, with the small CLIP."""

import argparse
import json
import os
import sys
from pathlib import Path

import trainers
from common.files import replacing, write_text
from common.start import add_common_options, at_least, path

from .configs import config_files, known_datasets
from .protocols import recipe
from .studies.executor import LocalExecutor, check_datasets, execute_runs
from .studies.progress import collect_results
from .studies.render import Cell, Table, markdown_grid
from .studies.spec import Study, Variant
from .studies.tables import Summary

DESCRIPTION = "Train methods on the base classes of a synthetic dataset and test them on its base and new classes."
EPILOG = """
Nothing is downloaded: the backbone is the project's own small CLIP, and the dataset is generated. Prints a table, and
writes it to OUTPUT/summary.json and as a picture to OUTPUT/summary.png. Run the same command again to resume.
"""
PARTS = {"base": "base", "new": "new", "H": "h"}  # of a Summary, and their names in summary.json


def choose_config(method: str) -> str:
    """The name of a method's YAML file: `small`, or the one for base-to-new."""
    return "small" if any(file.stem == "small" for file in config_files(method)) else recipe(method, "base2new").cfg


def summarize(study: Study) -> dict:
    """The content of summary.json: for each method the accuracies in percent and the seconds, means over seeds."""
    summary = Summary(study, collect_results(study))
    methods: dict[str, dict[str, float]] = {name: {} for name in summary.variants}
    cells = summary.cells[summary.cells["dataset"] == study.datasets[0]].fillna({"spread": 0.0})  # one seed: NaN
    for column, suffix in {"mean": "", "spread": "_std"}.items():
        for part, method, value in cells[["part", "method", column]].itertuples(index=False):
            methods[method][PARTS[part] + suffix] = value
    seconds = summary.runs.set_index(["method", "seed"])[["train_seconds", "test_seconds"]].sum(axis="columns")
    for method, value in seconds.groupby(["method", "seed"]).sum().groupby("method").mean().items():
        methods[method]["seconds"] = value
    return {"dataset": study.datasets[0], "seeds": list(study.seeds), "methods": methods}


def to_markdown(summary: dict) -> str:
    rows = [
        [method, *(f"{row[key]:.1f} ± {row[f'{key}_std']:.1f}" for key in PARTS.values()), f"{row['seconds']:.0f}"]
        for method, row in summary["methods"].items()
    ]
    return markdown_grid(Table("", ["method", *PARTS, "seconds"], [list(map(Cell, row)) for row in rows]))


def plot(summary: dict, file: Path) -> None:
    """Draw bars of base, new and H for each method, in grey."""
    from matplotlib.figure import Figure

    methods = summary["methods"]
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    labels = zip(PARTS.values(), ("base classes", "new classes", "harmonic mean"), ("0.85", "0.6", "0.3"), strict=True)
    for index, (key, label, grey) in enumerate(labels):
        x = [position + 0.27 * (index - 1) for position in range(len(methods))]
        values, errors = ([row[name] for row in methods.values()] for name in (key, f"{key}_std"))
        bars = axes.bar(x, values, 0.25, yerr=errors, label=label, color=grey, edgecolor="black", capsize=3)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set_xticks(range(len(methods)), methods)
    axes.set(ylabel="accuracy (%)", ylim=(0, 109), title=f"{summary['dataset']}, mean of {len(summary['seeds'])} seeds")
    axes.legend(loc="upper left", ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(file) as partial:
        figure.savefig(partial, dpi=120, format="png")


def main(argv: list[str] | None = None) -> None:
    known, baselines = (
        trainers.methods(),
        [name for name, method in trainers.methods().items() if not method.learns and method.kind == "inductive"],
    )
    parser = argparse.ArgumentParser(description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "--output", type=path, default=Path("output/demo"), help="folder for the results (default: output/demo)"
    )
    parser.add_argument("--root", type=path, default=Path("data"), help="folder of the dataset")
    parser.add_argument(
        "--dataset", default="small_objects", choices=known_datasets(), metavar="NAME", help="a synthetic dataset"
    )
    default, described = ["CoOp", "MaPLe", "MPL"], f"any of {', '.join(known)}"
    parser.add_argument("--methods", nargs="+", default=default, choices=known, metavar="NAME", help=described)
    parser.add_argument(
        "--seeds", type=at_least(0), nargs="+", default=[1, 2, 3], help="seeds of each method (default: 1 2 3)"
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=min(4, os.cpu_count() or 1), help="number of runs at the same time"
    )
    add_common_options(parser)
    args = parser.parse_args(argv)
    names = dict.fromkeys((*baselines, *args.methods))
    variants = tuple(Variant(name, name, choose_config(name)) for name in names)
    for variant in variants:
        if variant.cfg != "small":
            print(f"{variant.name} uses {variant.cfg}.yaml")
    seeds = tuple(dict.fromkeys(args.seeds))
    study = Study(variants, (args.dataset,), seeds=seeds, root=args.root, output=args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    check_datasets(study)
    done, total = len(collect_results(study)), len(study.runs())
    title = f"{len(variants)} methods x {len(seeds)} seeds"
    if done == total:
        print(f"{title}: all {total} runs are done (delete {args.output} to run them again)")
    elif failed := execute_runs(study.sequences(), LocalExecutor(args.workers), title):
        count = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
        sys.exit(f"{count} failed, see above; run the same command again to retry")
    summary = summarize(study)
    write_text(args.output / "summary.json", json.dumps(summary, indent=1) + "\n")
    plot(summary, args.output / "summary.png")
    print(
        f"\n{args.dataset}, accuracy in %, mean ± standard deviation of {len(seeds)} seeds\n\n{to_markdown(summary)}\n"
    )
    print(f"Written: {args.output}/summary.json and summary.png")
