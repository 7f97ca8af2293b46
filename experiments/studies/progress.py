"""Study progress: finished, running, failed and pending runs, and the remaining time."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from common.errors import UsageError

from ..arguments import parse_arguments
from ..lock import is_locked
from ..results import ERROR, RECORDED, read_results
from .spec import Run, Study


def collect_results(study: Study, settings: bool = True) -> dict[Run, dict]:
    """The results.json of every finished run.

    Args:
        settings: compare all settings of a run with the study's, which imports torch; else those in results.json.

    Raises:
        UsageError: one is damaged, or a folder holds a run with other settings than the study's.
    """
    results = {}
    for run in tqdm(study.runs(), "reading results", unit="run", delay=2, disable=None):
        found = read_results(run.folder)
        if found is not None:
            check_run(run, found, settings)
            results[run] = found
    return results


def check_run(run: Run, found: dict, settings: bool) -> None:
    """Raise UsageError if these results are of a run with other settings: see `collect_results`."""
    if settings:
        from ..configuration import setup_cfg
        from ..output_folder import check_same_settings

        check_same_settings(setup_cfg(parse_arguments(list(run.arguments))), finished=True)
    ours = {"trainer": run.variant.method, "seed": run.seed, "shots": run.shots, "classes": run.classes}
    for key, value in ours.items():
        if found.get(key, value) != value:
            what = f"{run.folder} holds a run with {RECORDED[key]} {found[key]}, this one has {value}"
            raise UsageError(what, "choose another output folder, or delete that one", run.folder)


@dataclass
class Progress:
    """The state of a study's runs.

    Attributes:
        results: results.json of the finished runs.
        done: the finished runs, with the seconds from the set-up of each to its results.
        running: runs that some process executes, on this machine or another.
        failed: the failed runs, with the error of each in one line.
        left: all others.
    """

    study: Study
    results: dict[Run, dict]
    done: dict[Run, float] = field(init=False)
    running: list[Run] = field(default_factory=list, init=False)
    failed: dict[Run, str] = field(default_factory=dict, init=False)
    left: list[Run] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.done = {run: duration(run.folder) for run in self.results}
        for run in self.study.runs():
            if run in self.done:
                continue
            if is_locked(run.folder):
                self.running.append(run)
            elif (run.folder / ERROR).is_file():
                self.failed[run] = (run.folder / ERROR).read_text(errors="replace").strip()
            else:
                self.left.append(run)

    @classmethod
    def read(cls, study: Study, settings: bool = True) -> "Progress":
        """The progress now, from the folders of the runs; `settings` as in `collect_results`."""
        return cls(study, collect_results(study, settings))

    @cached_property
    def seconds_left(self) -> float | None:
        """Estimated time until the end, for the present number of runs at a time; failed runs are not counted.

        A run is expected to take as long as the finished ones that are most similar; None if no run is finished.
        """
        if not self.done:
            return None
        times = defaultdict(list)
        for run, seconds in self.done.items():
            for key in time_keys(run):
                times[key].append(seconds)
        pending = [*self.running, *self.left]
        total = sum(fmean(next(times[key] for key in time_keys(run) if key in times)) for run in pending)
        return total / max(1, len(self.running))

    def __str__(self) -> str:
        counts = f"{len(self.running)} are running, {len(self.failed)} have failed, {len(self.left)} are left"
        text = f"{len(self.done)} of {len(self.done) + self.unfinished} runs are done, {counts}"
        if self.unfinished and self.seconds_left:
            at_a_time = f"{len(self.running)} at a time" if self.running else "one at a time; none is running"
            text += f", about {tqdm.format_interval(int(self.seconds_left))} to go ({at_a_time})"
        return text

    @property
    def unfinished(self) -> int:
        """The number of runs that are not done."""
        return len(self.running) + len(self.failed) + len(self.left)


def time_keys(run: Run) -> Iterator[tuple]:
    """Grouping keys for time estimates, most specific first."""
    every = (run.trains, run.variant.method, run.protocol, run.shots, run.dataset)
    return (every[:count] for count in range(len(every), -1, -1))


def duration(folder: Path) -> float:
    """Seconds between the first and the last file that a run writes; for a resumed run, since its last start."""
    first, last = ((folder / name) for name in ("config.yaml", "results.json"))
    return max(0.0, last.stat().st_mtime - first.stat().st_mtime) if first.is_file() else 0.0
