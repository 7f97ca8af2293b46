"""The commands of `python tools/study.py`: execute the runs of a study file and make tables, plots
and a report.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UsageError
from common.files import check_no_link, check_regular, write_text
from common.names import csv_cell, printable
from common.results import RunResult
from common.start import Parser, at_least, of_project
from common.version import source
from inference.arguments import add_plugin_option
from measures.results import several_versions

from .plan import Run, RunSequence, Search, Study, load
from .progress import Progress, collect_results, decide

if TYPE_CHECKING:  # a command imports its modules when it runs: torch and pandas take seconds
    from .run import ClusterExecutor, LocalExecutor
    from .tables import Summary

DESCRIPTION = "Run and compare many methods: python tools/study.py run studies/small.yaml"
EPILOG = """
`plan` prints how many runs a study has, and the hours and the disk that they take. `run` executes
the unfinished runs, several at a time: as tasks of Ray if that is installed, on this machine or on
a cluster (docs/studies.md), else in processes of this machine. `status` prints how many runs are
finished, running, failed and pending, and the remaining time. `tables` prints the results so far
and writes them to OUTPUT/studies/NAME/tables.{md,tex,csv,json}; `plots` draws them, as PNG, SVG and
PDF in the same folder; `report` writes everything to one page there, report.html. docs/studies.md
explains the keys of a study file.
"""


def run(study: Study, args: argparse.Namespace) -> None:
    trials = study.trials()
    if args.dry_run:
        show_commands(study)
        return
    from .run import check_datasets, execute_runs

    executor = choose_executor(study, args)
    # Raises for links, damaged results, and those of other settings
    finished = collect_results(study, trials)
    waiting = decide(study)
    finished |= collect_results(study)
    show_cost(study, list(finished.values()))
    check_datasets(study)
    failed = {}
    if waiting:
        failed = execute_runs([(trial,) for trial in trials], executor, f"{args.file.stem}: trials")
        executor = choose_executor(study, args)
        waiting = decide(study)
    failed |= execute_runs(decided(study, waiting), executor, args.file.stem)
    if waiting:
        fault = f"The trials of {len(waiting)} choices have failed"
        print(f"\n{fault}, so that the runs that need these have not started")
    end(failed)


def show_commands(study: Study) -> None:
    """Print the commands of the runs."""
    for run in (*study.trials(), *study.runs()):
        print(f"python train.py {shlex.join(run.arguments)}")


def show_cost(study: Study, results: list[RunResult]) -> None:
    """Print what the study takes, and warn of runs of different versions."""
    from runs.results import versions

    progress = Progress(study)
    print(progress.cost())
    if progress.left or progress.failed:
        results = [*results, RunResult(accuracy=0.0, **source(), versions=versions())]
    if several := several_versions(results):
        print(f"warning: {several}", file=sys.stderr)


def decided(study: Study, waiting: list[Search]) -> list[RunSequence]:
    """The sequences whose settings do not wait for trials."""
    missing = {str(search.file) for search in waiting}
    return [
        runs
        for runs in study.sequences
        if not any(missing.intersection(run.arguments) for run in runs)
    ]


def end(failed: dict[Run, str]) -> None:
    """List failed runs, and exit with status 1 if there are any."""
    if failed:
        print(f"\nFailed runs: {len(failed)}")
        for run, error in failed.items():
            print(f"{run.folder}: {error}")
        print("Run the same command again to retry the failed runs and continue")
        sys.exit(1)


def choose_executor(study: Study, args: argparse.Namespace) -> "LocalExecutor | ClusterExecutor":
    """Ray if it is installed or --address is given; local processes if it is not, or --workers is
    given.
    """
    from common.cluster import available

    from .run import ClusterExecutor, LocalExecutor

    if args.address or (available() and not args.workers):
        return ClusterExecutor(args.address, study.cpus, study.gpus)
    import torch

    by_default = (
        1 if torch.cuda.is_available() else min(4, (os.cpu_count() or 1) // study.cpus or 1)
    )
    return LocalExecutor(args.workers or by_default, study.cpus)


def plan(study: Study, args: argparse.Namespace) -> None:
    print(Progress(study).cost())


def status(study: Study, args: argparse.Namespace) -> None:
    progress = Progress(study)
    print(progress)
    for run in progress.running:
        print(f"running: {printable(run.folder)}")
    for run, error in progress.failed.items():
        print(f"failed: {printable(run.folder)}: {error}")


def summarize(study: Study, args: argparse.Namespace) -> "tuple[Summary, Path]":
    """The results of the finished runs, and the folder to write to."""
    from .tables import Summary

    results = collect_results(study)
    if not results:
        raise UsageError(
            "no run of this study is finished", f"python tools/study.py run {args.file}"
        )
    summary = Summary(study, results, args.intervals)
    for warning in summary.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    folder = study.output / "studies" / args.file.stem
    check_no_link(folder, study.output)
    folder.mkdir(parents=True, exist_ok=True)
    check_regular(folder, "output of the study")
    return summary, folder


def tables(study: Study, args: argparse.Namespace) -> None:
    from .report import overview
    from .write import build_tables, latex, markdown

    summary, folder = summarize(study, args)
    made = [*overview(summary), *build_tables(summary)]
    texts = {
        "md": markdown(made),
        "tex": latex(made),
        "csv": summary.cells.map(csv_cell).to_csv(index=False),
        "json": json.dumps(summary.records(), indent=1) + "\n",
    }
    for kind, text in texts.items():
        write_text(folder / f"tables.{kind}", text)
    print(texts["md"])
    print(f"Written: {folder}/tables.{{{','.join(texts)}}}")


def plots(study: Study, args: argparse.Namespace) -> None:
    from .plots import draw

    summary, folder = summarize(study, args)
    for *_, files in draw(summary, folder):
        for file in files:
            print(f"Written: {file}")


def report(study: Study, args: argparse.Namespace) -> None:
    from .report import page

    summary, folder = summarize(study, args)
    file = folder / "report.html"
    write_text(file, page(summary, Progress(study), args.file))
    print(f"Written: {file}")


COMMANDS = {
    "plan": plan,
    "run": run,
    "status": status,
    "tables": tables,
    "plots": plots,
    "report": report,
}
READ_BY = {"address": "run", "workers": "run", "dry_run": "run", "intervals": "tables plots report"}


def study_file(text: str) -> Path:
    """The argparse type of a study, of the user or of the project."""
    return Path(of_project(text))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("file", type=study_file, help="a study, such as studies/small.yaml")
    place = parser.add_mutually_exclusive_group()
    text = "for run: address of a Ray cluster, such as auto or HOST:6379 (docs/studies.md)"
    place.add_argument("--address", help=text)
    place.add_argument(
        "--workers", type=at_least(1), help="for run: use this number of processes instead of Ray"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="for run: print the commands and run nothing"
    )
    text = (
        "for tables, plots, report: ± is half of the 95%% t-interval over seeds, not the deviation"
    )
    parser.add_argument("--intervals", action="store_true", help=text)
    add_plugin_option(parser)
    args = parser.parse_args(argv)
    for option, commands in READ_BY.items():
        if getattr(args, option) and args.command not in commands.split():
            name = option.replace("_", "-")
            parser.error(
                f"--{name} is for {commands.replace(' ', ' and ')}, not for {args.command}"
            )
    COMMANDS[args.command](load(args.file, settings=args.command != "status"), args)
