"""Study progress: finished, running, failed and pending runs, and the remaining time."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from tqdm import tqdm

from common.errors import UsageError
from common.files import check_no_link
from common.names import printable
from common.text import read_text

from ..lock import is_locked
from ..results import ERROR, read_results
from .spec import Run, Study

ERROR_BYTES = 100_000  # of an error.txt


def collect_results(study: Study, runs: Sequence[Run] | None = None) -> dict[Run, dict]:
    """The results.json of every finished run.

    Args:
        runs: by default those of the comparison, without trials.

    Raises:
        UsageError: one is damaged, or a folder is a link, or has a run with other settings or prompts.
    """
    from ..same_run import check_finished  # it imports torch, which `Progress` does not need

    results = {}
    equal: set[tuple] = set()
    for run in tqdm(study.runs() if runs is None else runs, "reading results", unit="run", delay=2, disable=None):
        check_no_link(run.folder, study.output)
        found = read_results(run.folder)
        if found is not None:
            check_finished(run.folder, found, run.arguments, equal)
            results[run] = found
    return results


class Progress:
    """The state of a study's runs now, trials among them, from their folders.

    Attributes:
        done: the finished runs, with the seconds that each has trained and tested.
        running: runs that some process executes, on this machine or another.
        failed: the failed runs, with the error of each in one line.
        left: all others.

    Raises:
        UsageError: a results.json is damaged.
    """

    def __init__(self, study: Study):
        self.done: dict[Run, float] = {}
        self.running: list[Run] = []
        self.failed: dict[Run, str] = {}
        self.left: list[Run] = []
        for run in (*study.trials(), *study.runs()):
            if (found := read_results(run.folder)) is not None:
                self.done[run] = sum(found.get(key) or 0 for key in ("train_seconds", "test_seconds"))
            elif is_locked(run.folder):
                self.running.append(run)
            elif error := read_error(run):
                self.failed[run] = error
            else:
                self.left.append(run)

    def seconds_left(self) -> float:
        """Estimated time until the end, for the present number of runs at a time; failed runs are not counted.

        A run is expected to take as long as the finished ones of its method (trainings or tests), or else as all.
        """
        times = defaultdict(list)
        for run, seconds in self.done.items():
            times[run.variant.method, run.trains].append(seconds)
        every = fmean(self.done.values())
        pending = [times.get((run.variant.method, run.trains), [every]) for run in (*self.running, *self.left)]
        return sum(map(fmean, pending)) / max(1, len(self.running))

    def __str__(self) -> str:
        total = len(self.done) + len(self.running) + len(self.failed) + len(self.left)
        counts = f"{len(self.running)} are running, {len(self.failed)} have failed, {len(self.left)} are left"
        text = f"{len(self.done)} of {total} runs are done, {counts}"
        states = (self.done, self.running, self.failed, self.left)
        if trials := sum(bool(run.values) for state in states for run in state):
            text += f", {sum(bool(run.values) for run in self.done)} of {trials} trials are done"
        if self.done and (seconds := self.seconds_left()):
            text += f", about {tqdm.format_interval(int(seconds))} to go ({max(1, len(self.running))} at a time)"
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
