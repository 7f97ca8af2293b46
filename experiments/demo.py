"""Prompt learning on a laptop: methods from base to new classes of a synthetic dataset, with the small CLIP."""

import json
import os
import sys
import textwrap
from pathlib import Path

from common.errors import choose, choose_dataset
from common.files import replacing, write_text
from common.start import Parser, add_common_options, any_seed, at_least, path

from .configs import known_datasets
from .methods import methods
from .protocols import recipe
from .studies.progress import collect_results
from .studies.spec import Study, Variant

DESCRIPTION = "Train methods on the base classes of a synthetic dataset and test them on its base and new classes."
EPILOG = """
Nothing is downloaded: the backbone is the project's own small CLIP, and the dataset is generated. Prints accuracies
before training (zero-shot CLIP) and after it, and writes them to OUTPUT/summary.json. OUTPUT/images.png shows test
images with the probabilities before and after. Run the same command again to resume.
"""
CAUTION = """\
ZeroshotCLIP is the backbone before training. This is a smoke test: training and testing work on this machine. The
accuracies of a few seeds on synthetic images cannot rank methods, and say nothing about ViT-B/16 on photographs.
"""
IMAGES = 6  # of the picture
RIGHT, WRONG = "#8fc99a", "#d5d5d5"  # of the bars, light enough for black words
PARTS = {"base": "base", "new": "new", "H": "h"}  # of a Summary, and their names in summary.json


def summarize(study: Study) -> dict:
    """The content of summary.json: for each method the accuracies in percent and the seconds, means over seeds."""
    from .studies.tables import Summary

    summary = Summary(study, collect_results(study))
    columns: dict[str, dict[str, float]] = {name: {} for name in summary.variants}
    cells = summary.cells[summary.cells["dataset"] == study.datasets[0]].fillna({"spread": 0.0})  # one seed: NaN
    for column, suffix in {"mean": "", "spread": "_std"}.items():
        for part, method, value in cells[["part", "method", column]].itertuples(index=False):
            columns[method][PARTS[part] + suffix] = value
    seconds = summary.runs.groupby("method")[["train_seconds", "test_seconds"]].sum().sum(axis="columns")
    for method, value in seconds.items():
        columns[method]["seconds"] = value / len(study.seeds)
    return {"dataset": study.datasets[0], "seeds": list(study.seeds), "methods": columns}


def to_markdown(summary: dict) -> str:
    from .studies.render import Cell, Table, markdown_grid

    rows = [
        [method, *(f"{row[key]:.1f} ± {row[f'{key}_std']:.1f}" for key in PARTS.values()), f"{row['seconds']:.0f}"]
        for method, row in summary["methods"].items()
    ]
    return markdown_grid(Table("", ["method", *PARTS, "seconds"], [list(map(Cell, row)) for row in rows]))


def draw_answers(study: Study, file: Path) -> None:
    """Draw test images of base classes with the probabilities before training and after it.

    The images are the first ones of the first classes, whatever the methods answer. Before is the first method of the
    study, zero-shot CLIP; after is the last one. Both are runs of the first seed.
    """
    import numpy as np
    from dassl.utils import read_image
    from matplotlib.figure import Figure

    from .predictions import read as read_predictions

    seed = [run for run in study.runs() if run.classes == "base" and run.seed == study.seeds[0]]
    runs = {"before": seed[0], "after": seed[-1]}
    found = {when: read_predictions(run.folder) for when, run in runs.items()}
    rows = np.unique(found["before"]["label"], return_index=True)[1][:IMAGES]
    names = found["before"]["class_names"]
    figure = Figure(figsize=(5.6, 0.4 + 1.15 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False, width_ratios=(1, 1.6, 1.6))
    for (image, *bars), row in zip(grid, rows, strict=True):
        label = found["before"]["label"][row]
        image.imshow(read_image(study.root / found["before"]["image"][row]))
        image.set_xlabel(textwrap.fill(names[label], 14), fontsize=9)
        image.set(xticks=[], yticks=[])
        for axes, (when, predictions) in zip(bars, found.items(), strict=True):
            classes, probabilities = (predictions[key][row][:3] for key in ("classes", "probabilities"))
            colours = [RIGHT if index == label else WRONG for index in classes]
            axes.barh(range(len(classes)), probabilities, 0.9, color=colours)
            for place, (index, value) in enumerate(zip(classes, probabilities, strict=True)):
                axes.text(0.02, place, f"{names[index]} {value:.0%}", va="center", fontsize=9)
            axes.set(xlim=(0, 1), ylim=(2.5, -0.5), xticks=[], yticks=[])
            if row == rows[0]:
                axes.set_title(f"{when}: {runs[when].variant.name}", fontsize=10)
    with replacing(file) as partial:
        figure.savefig(partial, dpi=150, format="png")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("--output", type=path, default=Path("output/demo"), help="folder for the results (default: output/demo)")
    add("--root", type=path, default=Path("data"), help="folder of the dataset")
    add("--dataset", default="small_objects", metavar="NAME", help="a synthetic dataset")
    default, described = ["CoOp", "MaPLe", "MPL"], "methods that can tell new classes (docs/methods.md)"
    add("--methods", nargs="+", default=default, metavar="NAME", help=described)
    add("--seeds", type=any_seed, nargs="+", default=[1, 2, 3], help="seeds of each method (default: 1 2 3)")
    add("--workers", type=at_least(1), default=min(4, os.cpu_count() or 1), help="number of runs at the same time")
    add_common_options(parser)
    args = parser.parse_args(argv)
    choose_dataset(args.dataset, known_datasets())
    known = methods()
    baselines = [name for name, method in known.items() if not method.learns and method.kind == "inductive"]
    for name in args.methods:
        choose(name, known, "method")
    from .studies.executor import LocalExecutor, check_datasets, execute_runs  # imports torch, which takes seconds

    names = dict.fromkeys((*baselines, *args.methods))
    variants = tuple(Variant(name, name, recipe(name, "base2new", backbone="small").cfg) for name in names)
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
    draw_answers(study, args.output / "images.png")
    counted = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    print(f"\n{args.dataset}, accuracy in %, mean ± standard deviation of {counted}\n\n{to_markdown(summary)}\n")
    print(CAUTION)
    print(f"Written: {args.output}/summary.json and images.png")
