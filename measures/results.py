"""results.json: what a finished run has measured."""

import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from common.errors import UsageError
from common.files import RESULTS_FILE
from common.names import printable
from common.results import RunResult, read_results
from common.start import Parser

ERROR = "error.txt"  # next to results.json: the error of a run of a study
SELECTED = "Selected on test images"  # starts the line of a log that says so
# The settings that results.json holds, under names of its own.
RECORDED = {
    "trainer": "TRAINER.NAME",
    "dataset": "DATASET.NAME",
    "seed": "SEED",
    "shots": "DATASET.NUM_SHOTS",
    "classes": "DATASET.SUBSAMPLE_CLASSES",
    "backbone": "MODEL.BACKBONE.NAME",
    "weights_sha256": "MODEL.BACKBONE.SHA256",
}


def several_versions(runs: Iterable[RunResult]) -> str:
    """A line about runs of several versions of this project or of torch, whose average mixes them;
    empty for one.
    """
    counts = Counter(map(version_of, runs))
    if len(counts) < 2:
        return ""
    each = [f"{version} ({number:,} runs)" for version, number in counts.most_common(5)]
    more = f" and {len(counts) - 5:,} more" if len(counts) > 5 else ""
    return f"the runs are of {len(counts)} versions, which averages mix: {', '.join(each)}{more}"


def version_of(run: RunResult) -> str:
    """The version of this project, the commit and the version of torch of a run."""
    commit = run.commit or "unknown"
    changes = " with changes" if run.dirty else ""
    torch = run.versions.get("torch", "unknown")
    version = run.version or "unknown"
    return f"{printable(version)} of commit {commit:.9}{changes}, torch {printable(torch)}"


def selection_mark(run: RunResult) -> str:
    """The words behind the accuracy of a run that was selected on test images; else empty."""
    return f" ({SELECTED.lower()})" if run.selected_on_test else ""


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 base new / (base + new), in the unit of its arguments; 0 where both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


def summary_line(run: RunResult) -> str:
    """The result of a run in one line."""
    shots = "" if run.shots == -1 else f" {run.shots} shots"
    seed = f" seed {run.seed}" if run.seed >= 0 else ""
    images = f"{run.n_test:,} test images of {run.classes} classes"
    return (
        f"{run.name} on {run.dataset}{shots}{seed}: {run.accuracy:.2f}% "
        f"on {images}{selection_mark(run)}"
    )


def chance_hint(accuracy: float | None, classes: int) -> list[str]:
    """A line for an accuracy in % below chance; none for another, or if none is measured."""
    below = accuracy is not None and accuracy < 100 / classes
    line = f"Guessing gives {100 / classes:.2f}%: check that each class name is that of its images"
    return [line] if below else []


def next_step(model: Path | str, plugin: str) -> str:
    """The line after a result: where its model is, and what it is for. `plugin` is the file of its
    method, if any.
    """
    words = [str(Path(model)), "IMAGES", *(["--plugin", plugin] if plugin else [])]
    return f"Model: {Path(model)}; next: python tools/predict.py {shlex.join(words)}"


def checked_summary(folder: Path, run: RunResult) -> str:
    """`summary_line` for the results of a folder; UsageError if they lack what every run writes."""
    if not (run.trainer and run.dataset and run.classes) or run.n_test is None:
        file = folder / RESULTS_FILE
        raise UsageError(f"{file} is damaged", "delete it and start its run again", file)
    return summary_line(run)


def main(argv: list[str] | None = None) -> None:
    """The command `python tools/base2new.py RUN ...`."""
    text = (
        "Print one line of results for each run, and the harmonic mean after a base and a new one."
    )
    parser = Parser(description=text)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="output folder of train.py"
    )
    args = parser.parse_args(argv)
    for folder in args.runs:
        if not (folder / RESULTS_FILE).is_file():
            raise UsageError(
                f"there is no {folder / RESULTS_FILE}",
                "give the output folder of a finished run",
                folder,
            )
    by_folder = {folder: run for folder in args.runs if (run := read_results(folder))}
    for folder, run in by_folder.items():
        print(checked_summary(folder, run))
    runs = list(by_folder.values())
    if [run.classes for run in runs] == ["base", "new"]:
        keys = (
            "trainer",
            "method",
            "dataset",
            "shots",
            "seed",
            "backbone",
            "weights_sha256",
        )
        if others := [key for key in keys if getattr(runs[0], key) != getattr(runs[1], key)]:
            print(f"No harmonic mean: {', '.join(others)} of these runs differ")
            return
        mark = max(map(selection_mark, runs))  # one of them is enough
        print(f"Harmonic mean: {harmonic_mean(*(run.accuracy for run in runs)):.2f}%{mark}")
