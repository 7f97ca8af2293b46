"""Prompt learning on a laptop: a study of methods on a synthetic dataset, with the small CLIP."""

import json
import os
import sys
from pathlib import Path

from common.errors import check_name
from common.files import write_text
from common.start import Parser, any_seed, at_least, path
from configs.methods import methods
from configs.recipes import recipe

from .progress import collect_results
from .spec import Study, Variant

DESCRIPTION = (
    "Train methods on the base classes of a synthetic dataset and test them on its base "
    "and new classes."
)
EPILOG = """
Nothing is downloaded: the backbone is the project's own small CLIP, and the dataset is generated.
Prints accuracies before training (zero-shot CLIP) and after it, and writes all numbers to
OUTPUT/summary.json. OUTPUT/images.png shows test images with the probabilities before and after.
Run the same command again to resume.
"""
CAUTION = """
ZeroshotCLIP is the backbone before training. This is a smoke test: training and testing work on
this machine. The accuracies of a few seeds on synthetic images cannot rank methods, and say nothing
about ViT-B/16 on photographs.
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add(
        "--output",
        type=path,
        default=Path("output/demo"),
        help="folder for the results (default: output/demo)",
    )
    add("--root", type=path, default=Path("data"), help="folder of the dataset")
    add(
        "--methods",
        nargs="+",
        default=["CoOp", "MaPLe", "MPL"],
        metavar="NAME",
        help="methods that transfer",
    )
    add(
        "--seeds",
        type=any_seed,
        nargs="+",
        default=[1, 2, 3],
        help="seeds of each method (default: 1 2 3)",
    )
    add(
        "--workers",
        type=at_least(1),
        default=min(4, os.cpu_count() or 1),
        help="number of runs at the same time",
    )
    args = parser.parse_args(argv)
    names = dict.fromkeys(("ZeroshotCLIP", *args.methods))
    for name in names:
        check_name(name, methods(), "method")
    variants = [
        Variant(name, name, recipe(name, "base2new", backbone="small").cfg) for name in names
    ]
    seeds = tuple(dict.fromkeys(args.seeds))
    study = Study(
        tuple(variants), ("small_objects",), seeds=seeds, root=args.root, output=args.output
    )

    from measures.outcomes import draw_answers
    from measures.predictions import read

    # Imports torch, which takes seconds
    from .executor import (
        LocalExecutor,
        check_datasets,
        execute_runs,
    )
    from .first_page import overview
    from .render import markdown
    from .tables import Summary

    check_datasets(study)
    if failed := execute_runs(study.sequences(), LocalExecutor(args.workers), "demo"):
        sys.exit(f"Failed runs: {len(failed)}, see above; run the same command again to retry")
    summary = Summary(study, collect_results(study))
    write_text(args.output / "summary.json", json.dumps(summary.records(), indent=1) + "\n")
    first, *_, last = (
        run for run in study.runs() if run.classes == "base" and run.seed == seeds[0]
    )
    answers = {
        f"{when}: {run.variant.name}": read(run.folder)
        for when, run in (("before", first), ("after", last))
    }
    draw_answers(answers, args.root, args.output / "images.png")
    print(
        f"\n{markdown(overview(summary))}{CAUTION}\nWritten: {args.output}/summary.json and "
        "images.png"
    )
