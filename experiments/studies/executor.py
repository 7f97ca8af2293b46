"""Execute the runs of a study, several at a time, with one progress bar."""

import os
import sys
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children
from typing import Any, Protocol

from dassl.data.datasets import build_dataset
from tqdm import tqdm

from common.errors import UsageError
from trainers.base.data_use import count_common

from ..arguments import parse_arguments
from ..configs import CONFIGS
from ..configuration import setup_cfg
from ..lock import remove_leftover
from ..results import read_results
from .choose import HELD_OUT
from .spec import Run, RunSequence, Study
from .worker import execute_run, init_worker, process_context, record_outcome

TRIES = 3  # for a run whose process or machine dies


def check_datasets(study: Study) -> None:
    """Build every dataset once, so that missing data is reported before the first run; generates synthetic datasets.

    Raises:
        UsageError: there are no files of a dataset, or trials would choose on its test images against their rule.
    """
    for dataset in dict.fromkeys(run.dataset for run in study.runs()):
        arguments = ["--root", str(study.root), "--dataset-config-file", str(CONFIGS / f"datasets/{dataset}.yaml")]
        build_dataset(setup_cfg(parse_arguments(arguments)))
    for run in {(run.protocol, run.dataset, run.shots): run for run in study.trials()}.values():
        cfg = setup_cfg(parse_arguments(list(run.arguments)))
        if cfg.TEST.SPLIT == "val":
            check_validation(build_dataset(cfg), run.dataset)


def check_validation(dataset: Any, name: str) -> None:
    """Check that a dataset has validation images, none of which is a test image."""
    instead = f"leave it out, or choose by {HELD_OUT}"
    if not dataset.val:
        raise UsageError(f"{name} has no validation images to choose on", instead)
    if common := count_common(dataset.val, dataset.test):
        raise UsageError(f"{common:,} of {len(dataset.val):,} validation images of {name} are test images", instead)


class Executor(Protocol):
    """Executes runs; a context manager that leaves no process behind."""

    def slots(self) -> int:
        """How many runs it can execute at a time, now."""

    def submit(self, run: Run) -> "Future[str | None]":
        """Start a run in another process.

        The future has the result of `execute_run`, or any exception if the process or its machine dies.
        """

    def __enter__(self) -> "Executor": ...

    def __exit__(self, *exception) -> None: ...


def execute_runs(sequences: Sequence[RunSequence], executor: Executor, title: str) -> dict[Run, str]:
    """Execute all unfinished runs, each sequence in order. A run whose process dies is tried up to `TRIES` times.

    Returns:
        the failed runs, each with its error in one line. The runs that follow one in its sequence are skipped.
    """
    finished = {run for sequence in sequences for run in sequence if read_results(run.folder) is not None}
    for run in finished:
        remove_leftover(run.folder)
    unfinished = [tuple(run for run in sequence if run not in finished) for sequence in sequences]
    # Long sequences first, so that at the end no core waits for one of them.
    waiting = deque(sorted(filter(None, unfinished), key=len, reverse=True))
    running: dict[Future[str | None], RunSequence] = {}
    deaths: Counter[Run] = Counter()
    failed: dict[Run, str] = {}
    total = sum(map(len, sequences))
    progress = tqdm(total=total, initial=len(finished), desc=title, unit="run", smoothing=0.05, disable=None)
    with executor, progress as bar:
        while waiting or running:
            while waiting and len(running) < executor.slots():
                sequence = waiting.popleft()
                running[executor.submit(sequence[0])] = sequence
            done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            bar.refresh()  # its clock
            for future in done:
                sequence = running.pop(future)
                run, *rest = sequence
                death = future.exception()
                deaths[run] += death is not None
                if death and deaths[run] < TRIES:
                    waiting.appendleft(sequence)
                    continue
                why = f"its process died {TRIES} times, which often means a full memory ({death})"
                error = record_outcome(run.folder, ChildProcessError(why)) if death else future.result()
                if error:
                    failed[run] = error
                    bar.write(f"failed: {run.folder}: {error}", file=sys.stderr)
                elif rest:
                    waiting.appendleft(tuple(rest))
                bar.update(len(sequence) if error else 1)
    return failed


class LocalExecutor:
    """Processes of this machine. They are killed if the context ends with an exception.

    Args:
        workers: number of processes.
        threads: threads of each; two runs of one thread side by side are faster than one run of two.
    """

    def __init__(self, workers: int, threads: int = 1):
        self.workers, self.threads = workers, threads
        # Each has one process, so that the death of a process breaks no other run; and its last run.
        self.pools: dict[ProcessPoolExecutor, Future[str | None]] = {}

    def slots(self) -> int:
        return self.workers

    def submit(self, run: Run) -> "Future[str | None]":
        idle = [pool for pool, last in self.pools.items() if last.done() and not last.exception()]
        pool = idle[0] if idle else ProcessPoolExecutor(1, process_context(), init_worker, (self.threads,))
        try:
            self.pools[pool] = pool.submit(execute_run, run.arguments)
        except BrokenProcessPool as error:  # the process died after its last run
            self.pools[pool] = Future()
            self.pools[pool].set_exception(error)
        return self.pools[pool]

    def __enter__(self) -> "LocalExecutor":
        os.environ["OMP_NUM_THREADS"] = str(self.threads)  # inherited by the processes
        return self

    def __exit__(self, kind, *exception) -> None:
        for process in active_children() if kind else ():
            process.terminate()
        for pool in self.pools:
            pool.shutdown()
