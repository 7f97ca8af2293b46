"""Prompt learning on a laptop: a study of methods on a synthetic dataset, with the small CLIP."""

import argparse
import os
import sys
from pathlib import Path

from common.errors import check_name
from common.files import write_json
from common.start import Parser, any_seed, at_least, path
from configs.methods import methods
from configs.recipes import recipe

from .plan import Study
from .progress import collect_results
from .study import Variant

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


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    text = "folder for the results (default: output/demo)"
    add("--output", type=path, default=Path("output/demo"), help=text)
    add("--root", type=path, default=Path("data"), help="folder of the dataset")
    names = ["CoOp", "MaPLe", "MPL"]
    add("--methods", nargs="+", default=names, metavar="NAME", help="methods that transfer")
    text = "seeds of each method (default: 1 2 3)"
    add("--seeds", type=any_seed, nargs="+", default=[1, 2, 3], help=text)
    workers = min(4, os.cpu_count() or 1)
    text = "number of runs at the same time"
    add("--workers", type=at_least(1), default=workers, help=text)
    return parser.parse_args(argv)


def study_of(args: argparse.Namespace) -> Study:
    """Zero-shot CLIP and the methods on the synthetic dataset. Raises UsageError for an unknown
    one.
    """
    names = dict.fromkeys(("ZeroshotCLIP", *args.methods))
    for name in names:
        check_name(name, methods(), "method")
    variants = tuple(
        Variant(name, name, recipe(name, "base2new", backbone="small").cfg) for name in names
    )
    seeds = tuple(dict.fromkeys(args.seeds))
    return Study(variants, ("small_objects",), seeds=seeds, root=args.root, output=args.output)


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(argv)
    study = study_of(args)
    # They import torch, which takes seconds
    from measures.outcomes import draw_answers
    from measures.predictions import read_predictions

    from .report import overview
    from .run import LocalExecutor, check_datasets, execute_runs
    from .tables import Summary
    from .write import markdown

    check_datasets(study)
    failed = execute_runs(study.sequences, LocalExecutor(args.workers), "demo")
    if failed:
        sys.exit(f"Failed runs: {len(failed)}, see above; run the same command again to retry")
    summary = Summary(study, collect_results(study))
    write_json(args.output / "summary.json", summary.records())
    runs = [run for run in study.runs() if (run.classes, run.seed) == ("base", study.seeds[0])]
    answers = {
        f"before: {runs[0].variant.name}": read_predictions(runs[0].folder),
        f"after: {runs[-1].variant.name}": read_predictions(runs[-1].folder),
    }
    draw_answers(answers, args.root, args.output / "images.png")
    written = f"Written: {args.output}/summary.json and images.png"
    print(f"\n{markdown(overview(summary))}{CAUTION}\n{written}")
