"""Prompt learning on a laptop: zero-shot CLIP, CoOp, MaPLe and MPL from base to new classes of a drawn dataset.

    make demo

Nothing is downloaded: the backbone is the project's own small CLIP, the dataset draws itself. Ends with a table, the
same as OUTPUT/summary.json, and a picture, OUTPUT/summary.png. The same command goes on where it was cut off.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import trainers
from common.files import write_text
from common.start import add_common_options

from .arguments import at_least
from .results import harmonic_mean
from .studies.executor import Processes, execute, prepare
from .studies.progress import collect
from .studies.spec import CONFIGS, Study, Variant

FIGURES = ("base", "new", "h")


def summarise(study: Study, dataset: str) -> dict:
    """Per method, over seeds: the mean base and new accuracy in percent and the harmonic mean of these two; the
    (population) standard deviations, of H that of each seed's; and the mean seconds of training and both tests."""
    done, pairs = collect(study), {variant.name: [] for variant in study.variants}
    for runs in study.base2new():
        pairs[runs[0].variant.name].append([done[run] for run in runs])
    summary = {}
    for method, results in pairs.items():
        accuracies = [[run["accuracy"] for run in pair] for pair in results]
        values = {
            "base": [base for base, _ in accuracies],
            "new": [new for _, new in accuracies],
            "h": [harmonic_mean(*pair) for pair in accuracies],
        }
        row = {key: statistics.fmean(values[key]) for key in ("base", "new")}
        row["h"] = harmonic_mean(row["base"], row["new"])
        row |= {f"{key}_std": statistics.pstdev(values[key]) for key in FIGURES}
        times = [sum(run[key] or 0 for run in pair for key in ("train_seconds", "test_seconds")) for pair in results]
        summary[method] = row | {"seconds": statistics.fmean(times)}
    return {"dataset": dataset, "seeds": list(study.seeds), "methods": summary}


def table(summary: dict) -> str:
    """Markdown."""
    lines = ["| method | base | new | H | seconds |", "| --- | --- | --- | --- | --- |"]
    for method, row in summary["methods"].items():
        cells = (f"{row[key]:.1f} ± {row[f'{key}_std']:.1f}" for key in FIGURES)
        lines.append(f"| {method} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def plot(summary: dict, file: Path) -> None:
    """Bars of base, new and H per method, readable without colours."""
    methods = summary["methods"]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    looks = zip(FIGURES, ("base classes", "new classes", "harmonic mean"), ("0.85", "0.6", "0.3"), strict=True)
    for index, (key, label, grey) in enumerate(looks):
        places = [place + 0.27 * (index - 1) for place in range(len(methods))]
        values, errors = ([row[name] for row in methods.values()] for name in (key, f"{key}_std"))
        bars = axes.bar(places, values, 0.25, yerr=errors, label=label, color=grey, edgecolor="black", capsize=3)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set_xticks(range(len(methods)), methods)
    axes.set(ylabel="accuracy (%)", ylim=(0, 109), title=f"{summary['dataset']}, mean of {len(summary['seeds'])} seeds")
    axes.legend(loc="upper left", ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--root", type=Path, default=Path("data"), help="where the dataset is, or will be drawn")
    known = sorted(file.stem for file in (CONFIGS / "datasets").glob("*.yaml"))
    parser.add_argument(
        "--dataset", default="small_objects", choices=known, metavar="NAME", help="of configs/datasets/"
    )
    parser.add_argument("--methods", nargs="+", default=["CoOp", "MaPLe", "MPL"], choices=trainers.methods())
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[1, 2, 3])
    parser.add_argument("--cfg", default="small", help="name of a YAML in configs/trainers/<method>/")
    parser.add_argument("--workers", type=at_least(1), default=min(4, os.cpu_count()), help="runs at a time")
    add_common_options(parser)
    args = parser.parse_args(argv)
    study = Study(
        tuple(Variant(method, method, args.cfg) for method in dict.fromkeys(("ZeroshotCLIP", *args.methods))),
        (args.dataset,),
        seeds=tuple(dict.fromkeys(args.seeds)),
        root=args.root,
        output=args.output,
    )
    for variant in study.variants:
        if not variant.config_file.is_file():
            parser.error(f"there is no {variant.config_file}: give the name of one beside it as --cfg")
    prepare(study)
    chains = study.chains()
    done, total = len(collect(study)), sum(map(len, chains))  # not from results of other settings
    title = f"{len(study.variants)} methods x {len(study.seeds)} seeds"
    if done == total:
        print(f"{title}: all {total} runs are done (delete {args.output} to run them again)")
    elif failed := execute(chains, Processes(args.workers), title):
        sys.exit(f"{len(failed)} runs have failed: see above; the same command goes on with what is left")
    summary = summarise(study, args.dataset)
    write_text(args.output / "summary.json", json.dumps(summary, indent=1) + "\n")
    plot(summary, args.output / "summary.png")
    print(
        f"\n{args.dataset}, accuracy in %, mean ± standard deviation of {len(study.seeds)} seeds\n\n{table(summary)}\n"
    )
    print(f"Written: {args.output}/summary.json and summary.png")
