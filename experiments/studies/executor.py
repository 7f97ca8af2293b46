"""Execute the runs of a study, several at a time behind one progress bar."""

import os
import sys
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from dassl.data.datasets import build_dataset
from tqdm import tqdm

from ..arguments import parse_arguments
from ..configs import CONFIGS
from ..configuration import setup_cfg
from ..lock import remove_leftover
from ..results import read_results
from .spec import Run, RunSequence, Study
from .worker import Worker, WorkerDied, record_error

TRIES = 3  # for a run whose process or machine dies


def check_datasets(study: Study) -> None:
    """Build every dataset once, so that missing data is reported before the first run; draws synthetic datasets."""
    for dataset in dict.fromkeys(run.dataset for run in study.runs()):
        arguments = ["--root", str(study.root), "--dataset-config-file", str(CONFIGS / f"datasets/{dataset}.yaml")]
        build_dataset(setup_cfg(parse_arguments(arguments)))


class Executor(Protocol):
    """Executes runs; a context manager that leaves no process behind."""

    def slots(self) -> int:
        """How many runs it can execute at a time, now."""

    def submit(self, run: Run) -> "Future[str | None]":
        """Start a run: `execute_run` in another process."""

    def __enter__(self) -> "Executor": ...

    def __exit__(self, *exception) -> None: ...


def execute_runs(sequences: Sequence[RunSequence], executor: Executor, title: str) -> dict[Run, str]:
    """Execute all unfinished runs, each sequence in order.

    Returns:
        the failed runs, each with its error in one line. The runs that follow one in its sequence are skipped.
    """
    total, failed = sum(map(len, sequences)), {}
    unfinished = [tuple(run for run in sequence if read_results(run.folder) is None) for sequence in sequences]
    for sequence, left in zip(sequences, unfinished, strict=True):
        for run in set(sequence).difference(left):
            remove_leftover(run.folder)
    # Long sequences first, so that at the end no core waits for one of them.
    waiting = deque(sorted(filter(None, unfinished), key=len, reverse=True))
    running: dict[Future[str | None], RunSequence] = {}
    deaths: Counter[Run] = Counter()
    finished = total - sum(map(len, unfinished))
    with executor, tqdm(total=total, initial=finished, desc=title, unit="run", smoothing=0.05) as bar:
        while waiting or running:
            while waiting and len(running) < executor.slots():
                sequence = waiting.popleft()
                running[executor.submit(sequence[0])] = sequence
            done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            if sys.stderr.isatty():
                bar.refresh()  # its clock
            for future in done:
                sequence = running.pop(future)
                run, *rest = sequence
                death = future.exception()
                if isinstance(death, WorkerDied):
                    deaths[run] += 1
                    if deaths[run] < TRIES:
                        waiting.appendleft(sequence)
                        continue
                error = record_error(run.folder, death) if death else future.result()
                bar.update()
                if error:
                    failed[run] = error
                    bar.write(f"failed: {run.folder}: {error}", file=sys.stderr)
                    bar.update(len(rest))
                elif rest:
                    waiting.appendleft(tuple(rest))
    return failed


class LocalExecutor:
    """Processes of this machine. They are killed if the context ends with an exception.

    Args:
        workers: number of processes.
        threads: threads of each; two runs of one thread side by side are faster than one run of two.
    """

    def __init__(self, workers: int, threads: int = 1):
        self.workers, self.threads = workers, threads
        self.idle: list[Worker] = []
        self.started: list[Worker] = []
        self.callers = ThreadPoolExecutor(workers)  # each thread waits for one process
        self.stopping = False

    def slots(self) -> int:
        return self.workers

    def submit(self, run: Run) -> "Future[str | None]":
        return self.callers.submit(self.call, run)

    def call(self, run: Run) -> str | None:
        """Execute the run in an idle process, or in a new one; a process that died is not used again."""
        try:
            worker = self.idle.pop()
        except IndexError:  # no process is idle: another thread may have taken the last one just now
            worker = Worker(self.threads)
            self.started.append(worker)
            if self.stopping:  # since before the process was in the list
                worker.stop(now=True)
        error = worker.call(run.arguments)
        self.idle.append(worker)
        return error

    def __enter__(self) -> "LocalExecutor":
        self.before = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "PYTHONWARNINGS")}
        os.environ["OMP_NUM_THREADS"] = str(self.threads)  # inherited by the processes
        # One of them, multiprocessing's, removes what killed ones leave behind; it need not warn of that.
        warnings = [self.before["PYTHONWARNINGS"], "ignore:resource_tracker:UserWarning"]
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, warnings))
        return self

    def __exit__(self, kind, *exception) -> None:
        self.stopping = kind is not None
        for worker in self.started:
            worker.stop(now=self.stopping)
        self.callers.shutdown(cancel_futures=True)
        for worker in self.started:
            worker.process.join()
        for key, value in self.before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
