"""The progress of a study: which runs are finished, the choices after finished trials, and the
remaining time and disk.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import islice, product
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from common.errors import UsageError
from common.files import RESULTS_FILE, check_no_link, write_json
from common.lock import is_locked
from common.names import printable
from common.records import ImageList
from common.results import RunResult, read_results
from common.text import read_text
from common.version import source
from measures.results import ERROR

from .plan import Run, Search, Study
from .study import HELD_OUT, ORACLE, SearchRule, Values, by_key

ERROR_BYTES = 100_000  # of an error.txt
MOST_OTHERS = 5000  # runs of other studies


def collect_results(study: Study, runs: Sequence[Run] | None = None) -> dict[Run, RunResult]:
    """The results.json of every finished run: of `runs`, or of the comparison without its trials.

    Raises UsageError if one is damaged, or a folder is a link, or has a run with other settings or
    prompts.
    """
    from runs.folder import check_finished  # it imports torch, which `Progress` does not need

    by_run = {}
    equal: set[tuple] = set()
    for run in tqdm(
        study.runs() if runs is None else runs, "reading results", unit="run", delay=2, disable=None
    ):
        check_no_link(run.folder, study.output)
        if (results := read_results(run.folder)) is not None:
            check_finished(run.folder, results, run.arguments, equal)
            by_run[run] = results
    return by_run


class Measured:
    """What finished runs took."""

    def __init__(self) -> None:
        # Seconds, by method and whether it trained
        self.times: dict[tuple[str, bool], list[float]] = defaultdict(list)
        self.bytes: list[int] = []  # of the files of each run
        self.devices: Counter[str] = Counter()

    def add(self, folder: Path, results: RunResult, method: str, trains: bool) -> float:
        """Add a run by its results; returns its seconds."""
        seconds = (results.train_seconds or 0) + (results.test_seconds or 0)
        self.times[method, trains].append(seconds)
        self.bytes.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
        self.devices[results.device or "?"] += 1
        return seconds

    def add_others(self, output: Path, backbone: str) -> None:
        """Add the runs below a folder, those of a backbone if it is given; damaged ones are left
        out.
        """
        for file in islice(output.rglob(RESULTS_FILE), MOST_OTHERS):
            with suppress(UsageError):
                results = read_results(file.parent)
                if results and backbone in ("", results.backbone):
                    trains = bool(results.train_seconds)
                    self.add(file.parent, results, results.trainer, trains)

    def seconds(self, runs: Sequence[Run]) -> float:
        """The seconds of other runs: those of their method (trainings or tests), or else of all
        methods.
        """
        every = fmean(seconds for times in self.times.values() for seconds in times)
        return sum(fmean(self.times.get((run.variant.method, run.trains), [every])) for run in runs)


class Progress:
    """The state of a study's runs now, trials among them, by their folders. A damaged results.json
    is a UsageError.
    """

    def __init__(self, study: Study):
        # The seconds that each finished run has trained and tested
        self.done: dict[Run, float] = {}
        self.running: list[Run] = []  # that some process executes, on this machine or another
        self.failed: dict[Run, str] = {}  # the error of each in one line
        self.left: list[Run] = []
        # By the finished runs or, without one, by those of other studies in the same folder
        self.measured = Measured()
        for run in (*study.trials(), *study.runs()):
            if (results := read_results(run.folder)) is not None:
                self.done[run] = self.measured.add(
                    run.folder, results, run.variant.method, run.trains
                )
            elif is_locked(run.folder):
                self.running.append(run)
            elif error := read_error(run):
                self.failed[run] = error
            else:
                self.left.append(run)
        if not self.done:
            self.measured.add_others(study.output, study.backbone)

    @property
    def runs(self) -> list[Run]:
        return [*self.done, *self.running, *self.failed, *self.left]

    def cost(self) -> str:
        """The cost of the study: its runs, and the hours and the disk of those that are not
        finished, in one line.
        """
        runs = self.runs
        trainings = sum(run.trains for run in runs)
        waiting = len(runs) - len(self.done)
        text = f"{len(runs):,} runs, {trainings:,} of which train"
        if not waiting:
            return f"{text}, all done"
        if not self.measured.bytes:
            return f"{text}; hours and disk: known when one of them is finished"
        seconds = self.measured.seconds([*self.running, *self.failed, *self.left])
        took = (
            f"as {len(self.measured.bytes):,} finished runs took on "
            f"{', '.join(self.measured.devices)}"
        )
        size = waiting * fmean(self.measured.bytes) / 1e9
        interval = tqdm.format_interval(int(seconds))
        return (
            f"{text}; {waiting:,} are left: about {interval} of one process and {size:.2f} GB, "
            f"{took}"
        )

    def seconds_left(self) -> float:
        """Estimated time until the end, for the present number of runs at a time; failed runs are
        not counted.
        """
        return self.measured.seconds([*self.running, *self.left]) / max(1, len(self.running))

    def __str__(self) -> str:
        runs = self.runs
        counts = (
            f"{len(self.running)} are running, {len(self.failed)} have failed, "
            f"{len(self.left)} are left"
        )
        text = f"{len(self.done)} of {len(runs)} runs are done, {counts}"
        if trials := sum(bool(run.values) for run in runs):
            text += f", {sum(bool(run.values) for run in self.done)} of {trials} trials are done"
        if self.done and (seconds := self.seconds_left()):
            text += (
                f", about {tqdm.format_interval(int(seconds))} to go "
                f"({max(1, len(self.running))} at a time)"
            )
        return text


def read_error(run: Run) -> str:
    """The error of a failed run in one line; empty if it has none. No link is followed."""
    file = run.folder / ERROR
    if file.is_symlink() or not file.exists():
        return f"{ERROR} is a link" if file.is_symlink() else ""
    try:
        return printable(" ".join(read_text(file, ERROR_BYTES, "replace").split()))
    except UsageError as error:
        return printable(error)


def decide(study: Study) -> list[Search]:
    """Write the file of every choice whose trials are all finished; returns those that wait for
    trials.

    Raises UsageError if results.json of a trial is damaged, or was measured on other images.
    """
    waiting = []
    for search in study.searches:
        if (content := outcome(study, search)) is None:
            waiting.append(search)
            continue
        check_no_link(search.file.parent, study.output)
        search.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(search.file, content | source())
    return waiting


def outcome(study: Study, search: Search) -> dict[str, Any] | None:
    """The content of the file of a choice; None while trials are missing."""
    accuracies = {}
    lists = {}  # of images, each once
    for values, runs in search.trials.items():
        measured = []
        for run in runs:
            results = read_results(run.folder)
            if results is None:
                return None
            record = chosen_on(study.choose, run, results)
            lists[record["dataset"], record["sha256"]] = record
            measured.append(results.accuracy)
        accuracies[values] = fmean(measured)
    return choice_of(study.choose.by, accuracies, list(lists.values()))


def choice_of(by: str, accuracies: dict[Values, float], lists: list[dict]) -> dict[str, Any]:
    """The record of the best values, by the mean accuracies on lists of images."""
    settings = by_key(best(accuracies))
    choices = [
        {"what": key, **record, "trials": len(accuracies)}
        for key, record in product(settings, lists)
    ]
    means = [by_key(values) | {"accuracy": mean} for values, mean in accuracies.items()]
    return {"by": by, "settings": settings, "choices": choices, "accuracies": means}


def best(accuracies: Mapping[Any, float]) -> Any:
    """The key of the largest accuracy; of several that are equal to six digits, the first."""
    return max(accuracies, key=lambda key: round(accuracies[key], 6))


def chosen_on(choose: SearchRule, run: Run, results: RunResult) -> dict[str, Any]:
    """The record of the images on which a trial was tested, as one of a choice (`data_use`)."""
    test = results.card.test
    if test is None or test.split != choose.rule.split:
        fault = (
            f"{run.folder / RESULTS_FILE} does not say that it was tested on "
            f"{choose.rule.split} images"
        )
        raise UsageError(fault, "delete it and start its run again", run.folder / RESULTS_FILE)
    images: dict[str, Any] = {field.name: getattr(test, field.name) for field in fields(ImageList)}
    images |= {"split": "train"} if choose.by == HELD_OUT else {}
    return images | {"test_images": test.images if choose.by == ORACLE else 0, "by": choose.by}
