"""Runs of train.py, several at a time behind one progress bar: in processes of this machine, or elsewhere."""

import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout, suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Protocol

import torch
from dassl.data.datasets import build_dataset
from filelock import FileLock
from tqdm import tqdm

from common.files import write_text

from ..configuration import parse_arguments, setup_cfg
from ..results import read_results
from ..run import main
from .spec import CONFIGS, Chain, Run, Study

ERROR, LOCK = "error.txt", ".lock"  # beside a run's results.json
TRIES = 3  # of a run whose process or machine dies


def prepare(study: Study) -> None:
    """Build every dataset once: what is missing is said before the first run, and drawn sets are drawn."""
    others = [study.source, *study.targets] if "cross_dataset" in study.protocols else []
    for dataset in dict.fromkeys([*study.datasets, *others]):
        arguments = ["--root", str(study.root), "--dataset-config-file", str(CONFIGS / f"datasets/{dataset}.yaml")]
        build_dataset(setup_cfg(parse_arguments(arguments)))


class Place(Protocol):
    """Where runs are done, as a context that leaves no process behind."""

    def slots(self) -> int:
        """How many runs at a time it has room for now."""

    def submit(self, run: Run) -> "Future[str | None]":
        """Begin a run: `work`, there."""

    def __enter__(self) -> "Place": ...

    def __exit__(self, *exception) -> None: ...


def execute(chains: Sequence[Chain], place: Place, title: str) -> dict[Run, str]:
    """Work off what is left of all runs, each chain in order.

    Returns:
        what has gone wrong: the run and its error in a line; the rest of its chain is left out.
    """
    total, failed, deaths = sum(map(len, chains)), {}, Counter()
    chains = [tuple(run for run in chain if read_results(run.folder) is None) for chain in chains]
    finished = total - sum(map(len, chains))
    left = deque(sorted(filter(None, chains), key=len, reverse=True))  # long ones first: no core waits for the last
    running: dict[Future, Chain] = {}
    with place, tqdm(total=total, initial=finished, desc=title, unit="run", smoothing=0.05) as bar:
        while left or running:
            while left and len(running) < place.slots():
                chain = left.popleft()
                running[place.submit(chain[0])] = chain
            done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            bar.refresh()  # the clock goes on
            for future in done:
                chain = running.pop(future)
                run, *rest = chain
                error = outcome(run, future)
                if isinstance(future.exception(), BrokenProcessPool):
                    deaths[run] += 1
                    if deaths[run] < TRIES:
                        left.appendleft(chain)
                        continue
                bar.update()
                if error:
                    failed[run] = error
                    bar.write(f"failed: {run.folder}: {error}", file=sys.stderr)
                    bar.update(len(rest))
                elif rest:
                    left.appendleft(tuple(rest))
    return failed


def outcome(run: Run, future: "Future[str | None]") -> str | None:
    """The error of a run that has ended, or died with its process."""
    death = future.exception()
    return future.result() if death is None else record(run.folder, one_line(death))


class Processes:
    """Processes of this machine, killed if anything goes wrong.

    Args:
        workers: how many.
        threads: of each; two runs of one thread side by side outrun one of two.
    """

    def __init__(self, workers: int, threads: int = 1):
        self.workers, self.threads = workers, threads
        self.idle: list[ProcessPoolExecutor] = []
        self.busy: dict[Future, ProcessPoolExecutor] = {}

    def slots(self) -> int:
        return self.workers

    def submit(self, run: Run) -> Future:
        for future in [future for future in self.busy if future.done()]:
            executor = self.busy.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                executor.shutdown()
            else:
                self.idle.append(executor)
        executor = self.idle.pop() if self.idle else self.start()
        future = executor.submit(work, run.arguments)
        self.busy[future] = executor
        return future

    def start(self) -> ProcessPoolExecutor:
        """One process, in a pool of its own: its death concerns no other."""
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        return ProcessPoolExecutor(1, get_context("spawn"), prepare_process, [self.threads])  # CUDA can't be forked

    def __enter__(self) -> "Processes":
        self.before = os.environ.get("OMP_NUM_THREADS")
        return self

    def __exit__(self, kind, *exception) -> None:
        for executor in (*self.idle, *self.busy.values()):
            for process in list((executor._processes or {}).values()) if kind else ():
                process.terminate()
            executor.shutdown(cancel_futures=True)
        os.environ.pop("OMP_NUM_THREADS", None)
        if self.before is not None:
            os.environ["OMP_NUM_THREADS"] = self.before


def prepare_process(threads: int) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=follow, daemon=True).start()


def follow() -> None:
    """End with the main process, which may have been killed."""
    parent_process().join()
    os._exit(1)


def work(arguments: Sequence[str]) -> str | None:
    """One run in this process; what it prints is in its log.txt.

    A run that is going on elsewhere is waited for, and then finished or gone on with.

    Returns:
        its error in a line, which is also in error.txt of its folder until the run succeeds; None if there is none.
    """
    folder = Path(parse_arguments(list(arguments)).output_dir)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / LOCK, poll_interval=0.5):
                main(list(arguments))
                (folder / ERROR).unlink(missing_ok=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the other runs go on
            return record(folder, one_line(error))
    return None


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def record(folder: Path, error: str) -> str:
    """Leave the error in the run's folder, for `status` and `report`."""
    with suppress(OSError):  # such as the full disk that it speaks of
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ERROR, error + "\n")
    return error
