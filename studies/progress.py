"""Study progress: finished, running, failed and pending runs; the remaining time and disk."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from common.errors import UsageError
from common.files import RESULTS_FILE, check_no_link
from common.lock import is_locked
from common.names import printable
from common.results import RunResult, read_results
from common.text import read_text
from measures.results import ERROR

from .planned import Run
from .spec import Study

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
        hours = self.measured.seconds([*self.running, *self.failed, *self.left]) / 3600
        took = (
            f"as {len(self.measured.bytes):,} finished runs took on "
            f"{', '.join(self.measured.devices)}"
        )
        size = waiting * fmean(self.measured.bytes) / 1e9
        return (
            f"{text}; {waiting:,} are left: about {hours:.1f} hours of one process and "
            f"{size:.2f} GB, {took}"
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
