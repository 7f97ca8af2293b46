"""Kill commands at random moments, and run them again: `make kill SEED=1`.

They are runs of three methods, an evaluation with caches, an export, a study and a download. Each
chain is a folder in which a command is cut off one to three times, and then finishes. A third of
the kills come by the clock, the others before a single file operation (hook/sitecustomize.py);
besides them, the disk is full from such an operation on.

In the end, prompts (bit for bit), results and tables must be those of an unbroken run, and no
temporary file, stale epoch, lock or staging folder may be left. Folders in which that is not so are
kept.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from finished import members, slowdown
from serving import serving

from .subjects import Subject, content, differences, subjects

PATIENCE = 300  # seconds for a command; each takes less than a tenth
HOOK = str(Path(__file__).with_name("hook"))
# Statuses after a kill: a process that a command has started may be the one that ends.
ALLOWED = {"KILL": (-9, 0, 1, 2), "TERM": (130, -15, 0, 1, 2), "FULL": (0, 1, 2)}


@dataclass
class Tally:
    """Of a subject: how its commands were cut off, finished chains, and what went wrong."""

    cuts: Counter[str] = field(default_factory=Counter)
    chains: int = 0
    wrong: list[str] = field(default_factory=list)


def start(subject: Subject, folder: Path, **cut: object) -> subprocess.Popen:
    """Begin the command in a session of its own, with its output in a file in its folder; `cut`:
    at, how.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in subject.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    operations = folder / "operations"
    operations.unlink(missing_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "KILLS_FILE": str(operations),
    }
    environment |= {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([HOOK, *sys.path[1:]]),
    }
    environment |= {f"KILLS_{key.upper()}": str(value) for key, value in cut.items()}
    with open(folder / "printed.txt", "a") as printed:
        return subprocess.Popen(
            subject.command,
            cwd=folder,
            env=environment,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )


def wait(process: subprocess.Popen, seconds: float = PATIENCE) -> bool:
    """Whether the command ends within these seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def final(subject: Subject, folder: Path) -> dict[str, object]:
    """The files that the command has left, after the command that follows it."""
    if subject.after:
        subprocess.run(subject.after, cwd=folder, check=True, capture_output=True)
    return content(folder / subject.place)


def cut_off(
    subject: Subject, folder: Path, how: str, rng: Random, seconds: float, operations: int
) -> str:
    """Run the command and cut it off at a random moment; returns the fault of its end."""
    if how != "FULL" and rng.random() < 1 / 3:
        process = start(subject, folder)
        if not wait(process, rng.uniform(0, seconds * slowdown())):
            everybody = members(process.pid) if rng.random() < 0.5 else []
            for victim in {process.pid, *everybody}:
                try:
                    os.kill(victim, getattr(signal, f"SIG{how}"))
                except ProcessLookupError:
                    continue
    else:
        process = start(subject, folder, at=rng.randint(1, operations), how=how)
    fault = "" if wait(process, PATIENCE * slowdown()) else f"it does not end after {how}"
    deadline = time.monotonic() + 20 * slowdown()
    while left := members(process.pid):
        if fault or time.monotonic() > deadline:
            os.killpg(left[0], signal.SIGKILL) if left[0] == process.pid else os.kill(
                left[0], signal.SIGKILL
            )
            fault = fault or "its processes outlive it"
        time.sleep(0.05)
    return fault or (
        "" if process.wait() in ALLOWED[how] else f"exit status {process.returncode} after {how}"
    )


def kill_at_random(subject: Subject, cuts: dict[str, int], folder: Path, seed: int) -> Tally:
    """Cut a subject off so many times in each way; chains of one to three cuts each end with a
    finished run.
    """
    rng = Random(f"{seed} {subject.name}")
    tally = Tally()
    ways = [how for how, count in cuts.items() for _ in range(count)]
    rng.shuffle(ways)
    begun = time.monotonic()
    process = start(subject, folder / "unbroken")
    assert wait(process) and process.returncode == 0, (folder / "unbroken/printed.txt").read_text()
    seconds = time.monotonic() - begun
    operations = (folder / "unbroken/operations").stat().st_size
    expected = final(subject, folder / "unbroken")
    while ways:
        chain = folder / f"chain{tally.chains}"
        faults = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            if ways:
                tally.cuts[ways[-1]] += 1
                faults.append(cut_off(subject, chain, ways.pop(), rng, seconds, operations))
        process = start(subject, chain)
        if not wait(process) or process.returncode:
            faults.append(f"exit status {process.returncode} in the end")
        else:
            faults += differences(expected, final(subject, chain))
        # torch's loader prints one if its workers get the signal, TensorBoard's thread if the disk
        # is full.
        if re.search(
            r"^(?!Exception (ignored|in thread)).*\nTraceback",
            (chain / "printed.txt").read_text(),
            re.MULTILINE,
        ):
            faults.append("a traceback")
        tally.chains += 1
        if any(faults):
            tally.wrong.append(f"{chain}: {'; '.join(filter(None, faults))}")
            print(tally.wrong[-1], flush=True)
        else:
            shutil.rmtree(chain)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="make kill", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill", type=int, default=100, help="number of SIGKILL")
    parser.add_argument("--term", type=int, default=50, help="number of SIGTERM")
    parser.add_argument("--full", type=int, default=50, help="number of full disks")
    parser.add_argument("--only", nargs="+", default=[], help="names of subjects")
    parser.add_argument("--keep", type=Path, default=Path("output/kill"))
    args = parser.parse_args()
    place = args.keep.absolute() / f"seed{args.seed}"
    shutil.rmtree(place, ignore_errors=True)
    (place / "shared").mkdir(parents=True)
    begun = time.monotonic()
    with serving({}) as server, ThreadPoolExecutor(2) as pool:
        every = subjects(place / "shared", server)[::-1]  # the study first, as it takes the longest
        chosen = [subject for subject in every if not args.only or subject.name in args.only]
        futures = {}
        for index, subject in enumerate(chosen):
            totals = {"KILL": args.kill, "TERM": args.term, "FULL": args.full}
            # Nearly equal shares
            cuts = {how: (total + index) // len(chosen) for how, total in totals.items()}
            futures[subject.name] = pool.submit(
                kill_at_random, subject, cuts, place / subject.name, args.seed
            )
        tallies = {name: future.result() for name, future in futures.items()}
    print(f"{'command':12}{'KILL':>9}{'TERM':>9}{'FULL':>9}{'chains':>10}{'identical':>11}")
    for name, tally in tallies.items():
        counts = "".join(f"{tally.cuts[how]:9}" for how in ALLOWED)
        print(f"{name:12}{counts}{tally.chains:10}{tally.chains - len(tally.wrong):11}")
    print(f"{time.monotonic() - begun:.0f} seconds, seed {args.seed}")
    return 1 if any(tally.wrong for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
