"""How far a study is: which of its runs are done, which go on, which have failed, and how long the rest will take."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean

from filelock import FileLock, Timeout
from tqdm import tqdm

from ..configuration import parse_arguments, setup_cfg
from ..output_folder import check_same_settings
from ..results import read_results
from .executor import ERROR, LOCK
from .spec import Run, Study


def collect(study: Study) -> dict[Run, dict]:
    """The results.json of every finished run.

    Raises:
        ResultsError: one is damaged.
        SettingError: a folder holds a run of other settings than the study's.
    """
    results = {}
    for run in tqdm([run for chain in study.chains() for run in chain], "reading results", unit="run", delay=2):
        found = read_results(run.folder)
        if found is not None:
            check_same_settings(setup_cfg(parse_arguments(list(run.arguments))), finished=True)
            results[run] = found
    return results


@dataclass
class Progress:
    """What has become of a study's runs.

    Attributes:
        results: those of the runs that are done, read anew unless given.
        done: seconds that each took, from its set-up to its results.
        running: those that some process is at, on this machine or another.
        failed: the error of each that ended in one, in a line.
        left: all others.
    """

    study: Study
    results: dict[Run, dict] | None = None
    done: dict[Run, float] = field(default_factory=dict)
    running: list[Run] = field(default_factory=list)
    failed: dict[Run, str] = field(default_factory=dict)
    left: list[Run] = field(default_factory=list)

    def __post_init__(self):
        self.results = collect(self.study) if self.results is None else self.results
        self.done = {run: duration(run.folder) for run in self.results}
        for run in (run for chain in self.study.chains() for run in chain if run not in self.done):
            if is_running(run.folder):
                self.running.append(run)
            elif (run.folder / ERROR).is_file():
                self.failed[run] = (run.folder / ERROR).read_text(errors="replace").strip()
            else:
                self.left.append(run)

    @cached_property
    def seconds_left(self) -> float | None:
        """Until the end, with as many runs at a time as now: what like runs took, for all not done but the failed ones.

        Like are tests or trainings, of the same method, protocol, shots and dataset, as far as there is an example.
        None where nothing is done.
        """
        if not self.done:
            return None
        times = defaultdict(list)
        for run, seconds in self.done.items():
            for key in likeness(run):
                times[key].append(seconds)
        rest = [*self.running, *self.left]
        total = sum(fmean(next(times[key] for key in likeness(run) if key in times)) for run in rest)
        return total / max(1, len(self.running))

    def __str__(self) -> str:
        parts = [f"{len(self.done)} of {len(self.done) + self.open} runs are done"]
        parts += [f"{len(runs)} {what}" for runs, what in ((self.running, "are running"), (self.failed, "have failed"))]
        parts.append(f"{len(self.left)} are left")
        if self.open and self.seconds_left:
            at_a_time = f"{len(self.running)} at a time" if self.running else "one at a time; none is running"
            parts.append(f"about {tqdm.format_interval(int(self.seconds_left))} to go ({at_a_time})")
        return ", ".join(parts)

    @property
    def open(self) -> int:
        """How many runs are not done."""
        return len(self.running) + len(self.failed) + len(self.left)


def likeness(run: Run) -> Iterator[tuple]:
    """What makes runs take the same time, from all of it to nothing."""
    every = ("--eval-only" in run.arguments, run.variant.method, run.protocol, run.shots, run.dataset)
    return (every[:count] for count in range(len(every), -1, -1))


def duration(folder: Path) -> float:
    """Seconds between the files that a run writes first and last; of one that was cut off, since it last went on."""
    first, last = ((folder / name) for name in ("config.yaml", "results.json"))
    return max(0.0, last.stat().st_mtime - first.stat().st_mtime) if first.is_file() else 0.0


def is_running(folder: Path) -> bool:
    """Whether a process of a study is at this run: it holds the lock, which ends with it."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # somebody else's, who would be the one to know
        return False
