"""Runs cases, two at a time, each in a process of its own with limits, and counts how they end."""

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path

from finished import slowdown

from . import worker
from .cases import KINDS, Case, kind_of

SECONDS = 20.0
SLOTS = 2
REPORTED = 500  # inputs between two lines about the progress
MEGABYTES = worker.GIGABYTES * 1024


class Slot:
    """A place where one case at a time runs.

    Attributes:
        folder: the case's own folder; `../outside` is next to it, `../../base` is the corpus.
    """

    def __init__(self, scratch: Path, index: int):
        self.place, self.folder = scratch / f"slot{index}", scratch / f"slot{index}/case"
        self.output = self.place / "verdict"
        self.process = 0

    def begin(self, number: int, make: Callable[[], Case]) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.number, self.started = number, time.monotonic()
        self.output.touch()
        self.process = worker.start(make, self.folder, self.output)

    def poll(self) -> tuple[str, str] | None:
        """The verdict, once the process has ended or was killed."""
        late = time.monotonic() - self.started > SECONDS * slowdown()
        if not late and not os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return None
        self.kill()
        _, status, usage = os.wait4(self.process, 0)
        verdicts = [tuple(json.loads(line)) for line in self.output.read_text().splitlines()]
        for verdict in verdicts:
            if verdict[0] in ("failure", "harness"):  # an attempt counts, whatever came of it
                return verdict
        if late:
            return "failure", f"hangs: killed after {SECONDS:.0f} seconds"
        if status:
            return "failure", f"crashes with signal {status & 127}"
        if usage.ru_maxrss > MEGABYTES * 1024:
            return "failure", f"takes {usage.ru_maxrss >> 10} MB of memory"
        return verdicts[-1] if verdicts else ("failure", "ends without a verdict")

    def kill(self) -> None:
        """End the process and what it has started; its id is still its own, as nobody has waited for it."""
        for end in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                end(self.process, signal.SIGKILL)

    def printed(self) -> str:
        """The command and its output."""
        files = [self.output.with_suffix(suffix) for suffix in (".argv", ".log")]
        return "".join(file.read_text(errors="backslashreplace") for file in files if file.exists())


def fuzz(
    make: Callable[[int], Case], numbers: Collection[int], scratch: Path, keep: Path, show: bool = False
) -> tuple[Counter[tuple[str, str]], list[tuple[int, str]]]:
    """Run the inputs that `make` makes of these numbers, two at a time, in `scratch`; failing ones move to `keep`.

    Args:
        show: print the command, the output and the verdict of each.

    Returns:
        the number of inputs by (kind, verdict), and the numbers and faults of failing ones.
    """
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[tuple[int, str]] = []
    waiting, busy, idle = list(numbers)[::-1], [], [Slot(scratch, index) for index in range(SLOTS)]
    try:
        while waiting or busy:
            while idle and waiting:
                busy.append(idle.pop())
                busy[-1].begin(waiting[-1], partial(make, waiting.pop()))
            for slot in list(busy):
                if ended := slot.poll():
                    busy.remove(slot)
                    idle.append(slot)
                    counts[kind_of(slot.number), ended[0]] += 1
                    if show:
                        print(slot.printed(), *ended, "", sep="\n")
                    if ended[0] not in ("accepted", "refused"):
                        failures.append((slot.number, ended[1]))
                        keep_input(slot, ended[1], keep)
                    if counts.total() % REPORTED == 0:
                        done = f"{counts.total():,} of {len(numbers):,} inputs, {len(failures)} failures"
                        print(done, file=sys.stderr, flush=True)
            time.sleep(0.004)
    finally:
        for slot in busy:  # after Ctrl-C
            slot.kill()
    return counts, failures


def keep_input(slot: Slot, what: str, keep: Path) -> None:
    """Move the files of a case to `keep/NUMBER`, with what it printed, and with the verdict."""
    folder = keep / str(slot.number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in (slot.folder, slot.output.with_suffix(".log"), slot.output.with_suffix(".argv")):
        with suppress(OSError):
            shutil.move(path, folder / path.name)
    (folder / "failure.txt").write_text(what, errors="backslashreplace")


def barren(counts: Counter[tuple[str, str]]) -> list[str]:
    """Kinds without an accepted input. Some inputs of each kind stay valid, so something else refuses them."""
    total = {kind: sum(number for (each, _), number in counts.items() if each == kind) for kind in KINDS}
    return [kind for kind in KINDS if total[kind] >= 200 and not counts[kind, "accepted"]]


def table(counts: Counter[tuple[str, str]]) -> str:
    lines = [f"{'kind':22}{'inputs':>8}{'refused':>9}{'accepted':>10}{'failures':>10}"]
    for kind in [*KINDS, "all"]:
        found: Counter[str] = Counter()
        for (name, verdict), number in counts.items():
            found[verdict] += number * (kind in (name, "all"))
        failed = found["failure"] + found["harness"]
        lines.append(f"{kind:22}{found.total():8}{found['refused']:9}{found['accepted']:10}{failed:10}")
    return "\n".join(lines)
