"""Run a command, kill it at a random moment, run it again, and compare its files with those of an unbroken run."""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event
from typing import NamedTuple

from finished import members, slowdown

from .subjects import Subject, content, differences

PATIENCE = 300  # seconds for a command; each takes less than a tenth
stopping = Event()  # set after Ctrl-C: the threads end


class Course(NamedTuple):
    """How an unbroken run goes: its seconds, how often the names in its folder change, and what it leaves."""

    seconds: float
    changes: int
    content: dict[str, object]


@dataclass
class Tally:
    """Of a subject: kills by signal, finished chains of kills, and what went wrong."""

    kills: Counter[int] = field(default_factory=Counter)
    chains: int = 0
    wrong: list[str] = field(default_factory=list)


def start(subject: Subject, folder: Path) -> subprocess.Popen:
    """Begin the command in a session of its own, with its output in a file in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in subject.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    with open(folder / "printed.txt", "a") as printed:
        return subprocess.Popen(
            subject.command, cwd=folder, env=environment, stdout=printed, stderr=printed, start_new_session=True
        )


def wait(process: subprocess.Popen, folder: Path, moment: Callable[[float, int], bool]) -> tuple[bool, int]:
    """Wait until the moment comes or the process ends.

    Returns:
        whether it has ended, and how often the names of the files below the folder have changed.
    """
    begun, before, count = time.monotonic(), None, 0
    while process.poll() is None:
        names = {os.path.join(parent, name) for parent, _, files in os.walk(folder) for name in files}
        count += names != before and before is not None
        before, elapsed = names, time.monotonic() - begun
        if elapsed > PATIENCE * slowdown() or stopping.is_set():
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"{process.args} was killed after {elapsed:.0f} seconds")
        if moment(elapsed, count):
            return False, count
        time.sleep(0.001)
    return True, count


def finish(subject: Subject, folder: Path) -> tuple[subprocess.Popen, int]:
    """Run the command to its end; returns its process, and the changes of names."""
    process = start(subject, folder)
    return process, wait(process, folder / subject.place, lambda elapsed, count: False)[1]


def unbroken(subject: Subject, folder: Path) -> Course:
    begun = time.monotonic()
    process, count = finish(subject, folder)
    assert process.returncode == 0, (folder / "printed.txt").read_text()
    return Course(time.monotonic() - begun, count, final(subject, folder))


def final(subject: Subject, folder: Path) -> dict[str, object]:
    """The files that the command has left, after the command that follows it."""
    if subject.after:
        subprocess.run(subject.after, cwd=folder, check=True, capture_output=True)
    return content(folder / subject.place)


def random_moment(rng: Random, course: Course) -> Callable[[float, int], bool]:
    """A third by the clock; the others just after a file appears or goes, when there is most to leave behind."""
    if rng.random() < 1 / 3:
        seconds = rng.uniform(0, course.seconds)
        return lambda elapsed, count: elapsed >= seconds
    turn = rng.randrange(course.changes + 1)
    return lambda elapsed, count: count >= turn


def send(number: int, processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def kill(process: subprocess.Popen, number: int, victims: list[int]) -> str:
    """Send a signal to processes of the command; returns the fault of its end."""
    begun, family = time.monotonic(), descendants(process.pid)
    send(number, victims)
    process.wait(PATIENCE)
    while left := [*members(process.pid), *filter(is_alive, family)]:
        if time.monotonic() - begun > 20 * slowdown():
            send(signal.SIGKILL, left)
            return "its processes outlive it"
        time.sleep(0.05)
    # SIGTERM while Python starts, before the command can handle it, ends the process as it does any other.
    allowed = {signal.SIGKILL: (-9, 0), signal.SIGTERM: (130, -15, 0)}[signal.Signals(number)]  # 0: it had just ended
    return "" if process.returncode in allowed else f"exit status {process.returncode} after signal {number}"


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have started."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    try:
        children = [int(child) for each in threads for child in each.read_text().split()]
    except OSError:  # it has ended
        return []
    return [each for child in children for each in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def choose_victims(rng: Random, process: subprocess.Popen) -> list[int]:
    """The process alone, or all of its processes."""
    family = [process.pid, *descendants(process.pid)]
    return rng.choice((family[:1], family))


def chain(subject: Subject, course: Course, signals: list[int], folder: Path, rng: Random, tally: Tally) -> None:
    """Kill runs in one folder by these signals, which are removed from the list, then let one finish."""
    wrong, ended = [], False
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not signals or ended:
            break
        process = start(subject, folder)
        ended, _ = wait(process, folder / subject.place, random_moment(rng, course))
        if not ended:
            number = signals.pop()
            wrong.append(kill(process, number, choose_victims(rng, process)))
            tally.kills[number] += 1
    process, _ = finish(subject, folder)
    if process.returncode:
        wrong.append(f"exit status {process.returncode} in the end")
    else:
        wrong += differences(course.content, final(subject, folder))
    if "Traceback" in (folder / "printed.txt").read_text():
        wrong.append("a traceback")
    tally.chains += 1
    if found := list(filter(None, wrong)):
        tally.wrong.append(f"{folder}: {'; '.join(found)}")
        print(tally.wrong[-1], flush=True)
    else:
        shutil.rmtree(folder)


def kill_at_random(subject: Subject, kills: dict[int, int], folder: Path, seed: int) -> Tally:
    """Kill a subject so many times by each signal; chains of one to three kills each end with a finished run."""
    rng, tally = Random(f"{seed} {subject.name}"), Tally()
    signals = [number for number, count in kills.items() for _ in range(count)]
    rng.shuffle(signals)
    course = unbroken(subject, folder / "unbroken")
    while signals:
        chain(subject, course, signals, folder / f"chain{tally.chains}", rng, tally)
    return tally
