"""Execute the runs of a study, several at a time, with one progress bar; what its processes do."""

import io
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext, redirect_stderr, redirect_stdout, suppress
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch
from dassl.data.datasets import build_dataset
from tqdm import tqdm

from clip import keep_backbones
from common.cluster import check_cluster, connect, gpus_each, no_room, places
from common.errors import UsageError
from common.files import write_text
from common.lock import is_locked
from common.names import printable
from common.processes import end_with_parent
from configs.files import CONFIGS
from measures.results import ERROR, RESULTS_FILE, read_results
from runs.arguments import parse_arguments
from runs.config import RunSpec, setup_cfg
from runs.run import train_and_test
from trainers.base.data_use import count_common

from .plan import Run, RunSequence, Study
from .study import HELD_OUT

TRIES = 3  # for a run whose process or machine dies


def check_datasets(study: Study) -> None:
    """Build every dataset once, which draws synthetic ones: missing data is reported before the
    first run.

    Raises UsageError if files are missing, or trials would choose on test images against their
    rule.
    """
    # With all of its classes and images
    for name in dict.fromkeys(run.dataset for run in study.runs()):
        arguments = [
            "--root",
            str(study.root),
            "--dataset-config-file",
            str(CONFIGS / f"datasets/{name}.yaml"),
        ]
        with redirect_stdout(io.StringIO()):
            build_dataset(setup_cfg(parse_arguments(arguments)))
    remedy = f"leave it out, or choose by {HELD_OUT}"
    choosing = {(run.protocol, run.dataset, run.shots): run for run in study.trials()}
    for run in choosing.values():
        cfg = setup_cfg(parse_arguments(list(run.arguments)))
        if cfg.TEST.SPLIT == "val":
            check_validation(cfg, run.dataset, remedy)


def check_validation(cfg: Any, name: str, remedy: str) -> None:
    """Raise UsageError if a dataset has no validation images, or some of them are test images."""
    with redirect_stdout(io.StringIO()):
        dataset = build_dataset(cfg)
    if not dataset.val:
        raise UsageError(f"{name} has no validation images to choose on", remedy)
    if common := count_common(dataset.val, dataset.test):
        count = f"{common:,} of {len(dataset.val):,}"
        raise UsageError(f"{count} validation images of {name} are test images", remedy)


def execute_runs(
    sequences: Sequence[RunSequence], executor: "LocalExecutor | ClusterExecutor", title: str
) -> dict[Run, str]:
    """Execute all unfinished runs, each sequence in order. A run whose process dies is tried up to
    `TRIES` times. Returns the failed runs, each with its error in one line. The runs that follow
    one in its sequence are skipped.
    """
    unfinished = [unfinished_runs(sequence) for sequence in sequences]
    total = sum(map(len, sequences))
    shown: Any = {"unit": "run", "smoothing": 0.05, "disable": None}
    bar = tqdm(total=total, initial=total - sum(map(len, unfinished)), desc=title, **shown)
    queue = Queue(unfinished, executor, bar, title)
    # Ray takes seconds to start, and waits for a cluster on this machine that has just ended.
    with executor if queue.waiting else nullcontext(), bar:
        while queue.waiting or queue.running:
            queue.start()
            done, _ = wait(queue.running, timeout=1, return_when=FIRST_COMPLETED)
            bar.refresh()  # its clock
            for future in done:
                queue.end(future)
    return queue.failed


def unfinished_runs(sequence: RunSequence) -> RunSequence:
    """The runs of a sequence without results. Tests of earlier prompts lose theirs."""
    trained, *tests = sequence
    if read_results(trained.folder) is None:
        for run in tests:
            (run.folder / RESULTS_FILE).unlink(missing_ok=True)
    return tuple(run for run in sequence if read_results(run.folder) is None)


class Queue:
    """The sequences that wait and those that run, by the future of their first run; and the failed
    runs with their errors.
    """

    def __init__(
        self,
        sequences: Sequence[RunSequence],
        executor: "LocalExecutor | ClusterExecutor",
        bar: tqdm,
        title: str,
    ):
        self.executor = executor
        self.bar = bar
        self.title = title
        # Long sequences first, so that at the end no core waits for one of them.
        self.waiting = deque(sorted(filter(None, sequences), key=len, reverse=True))
        self.running: dict[Future[str | None], RunSequence] = {}
        self.deaths: Counter[Run] = Counter()
        self.failed: dict[Run, str] = {}

    def start(self) -> None:
        """Start as many runs as the executor takes."""
        while self.waiting and len(self.running) < self.executor.slots():
            sequence = self.next()
            self.running[self.executor.submit(sequence[0])] = sequence

    def next(self) -> RunSequence:
        """The next sequence whose run is in no other process: several commands share a study. If
        there is none, the first one, which then waits.
        """
        free = (one for one in self.waiting if not is_locked(one[0].folder))
        sequence = next(free, self.waiting[0])
        self.waiting.remove(sequence)
        return sequence

    def end(self, future: "Future[str | None]") -> None:
        """Take a run that has ended, or whose process has died, out of those that run."""
        run, *rest = self.running.pop(future)
        death = future.exception()
        self.deaths[run] += death is not None
        if death and self.deaths[run] < TRIES:
            self.waiting.appendleft((run, *rest))
            return
        if death:
            why = f"its process died {TRIES} times, which often means a full memory ({death})"
            error = record_outcome(run.folder, ChildProcessError(why))
        else:
            error = future.result()
        if error:
            self.failed[run] = error
        elif rest:
            self.waiting.appendleft(tuple(rest))
        advance(self.bar, self.title, run, error, len(rest) if error else 0)


def advance(bar: tqdm, title: str, run: Run, error: str | None, skipped: int) -> None:
    """Count a run that has ended, and those that are skipped because of its error."""
    if error:
        bar.write(f"failed: {run.folder}: {error}", file=sys.stderr)
    if not bar.disable:
        bar.update(1 + skipped)
        return
    bar.n += 1 + skipped
    if not error:  # not on a terminal: a log gets a line for each run
        results = read_results(run.folder)
        accuracy = f", accuracy {results.accuracy:.2f}%" if results else ""
        print(f"{title}: {bar.n} of {bar.total} runs: {run.folder}{accuracy}", flush=True)


class LocalExecutor:
    """Executes runs in processes of this machine. Each process executes one run after another; if
    it dies, the next run gets a new one. A process ends with this one, however that ends.

    Args:
        workers: number of processes.
        threads: threads of each; two runs of one thread side by side are faster than one run of
            two.
    """

    def __init__(self, workers: int, threads: int = 1):
        self.workers = workers
        self.threads = threads
        # Of each process its last run
        self.last: dict[ProcessPoolExecutor, Future[str | None]] = {}

    def slots(self) -> int:
        """How many runs it can execute at a time, now."""
        return self.workers

    def submit(self, run: Run) -> "Future[str | None]":
        """Start a run: the result of `execute_run`, or BrokenProcessPool if its process dies."""
        idle = (pool for pool, last in self.last.items() if last.done() and not last.exception())
        # A pool of several processes would end them all if one dies.
        pool = next(idle, None) or ProcessPoolExecutor(1, get_context("spawn"), end_with_parent)
        # Ctrl-C reaches every process of a terminal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.last[pool] = pool.submit(
                execute_in_process, os.getcwd(), self.threads, run.arguments
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return self.last[pool]

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *exception) -> None:
        # An idle one ends by itself, and tidies up
        for process in active_children() if any(exception) else ():
            process.kill()
        for pool in self.last:
            pool.shutdown()


class ClusterExecutor:
    """Executes runs as `LocalExecutor` does, on all machines of a Ray cluster. Machines may join
    and leave.

    Args:
        address: of the cluster's head; by default a cluster on this machine, or else this machine
            alone.
        cpus: cores, and threads, of a run.
        gpus: of a run; 0.5: two runs share one. By default 1 if the cluster has any.

    Raises UsageError if Ray is not installed, nothing listens at the address, or a run needs more
    than any machine has.
    """

    def __init__(self, address: str | None = None, cpus: int = 1, gpus: float | None = None):
        check_cluster(address)
        self.address = address
        self.cpus = cpus
        self.gpus = gpus

    def __enter__(self) -> "ClusterExecutor":
        ray = self.ray = connect(self.address)
        if self.gpus is None:
            self.gpus = gpus_each(ray)
        if self.slots() == 1:
            ray.shutdown()
            raise no_room(self.cpus, self.gpus)
        self.task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(
            execute_in_process
        )
        return self

    def __exit__(self, *exception) -> None:
        self.ray.shutdown()

    def slots(self) -> int:
        """Slots of all live machines, plus one queued run so that no machine waits for the next
        one.
        """
        return places(self.ray, self.cpus, self.gpus or 0) + 1

    def submit(self, run: Run) -> "Future[str | None]":
        return self.task.remote(os.getcwd(), self.cpus, run.arguments).future()


# In a process of a study


def execute_run(arguments: Sequence[str]) -> str | None:
    """Execute a run of train.py with these arguments in this process; its output goes to log.txt
    only.

    If another process executes the run, wait for it. Then skip the run if it is finished, else
    resume it. Returns None, or the run's error in one line. error.txt in its folder holds it until
    the run succeeds.
    """
    args = parse_arguments(list(arguments))
    error: BaseException | None = None
    keep_backbones(1)  # the next run of this process often has the same
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            spec = RunSpec(args)
            spec.check()
            train_and_test(spec, wait=True)
        # Otherwise each start of the study would train it again
        if read_results(Path(args.output_dir)) is None:
            raise UsageError("the run wrote no results", "leave TEST.NO_TEST out of its YAML files")
    except (Exception, SystemExit) as caught:
        error = caught
    return record_outcome(Path(args.output_dir), error)


def execute_in_process(folder: str, threads: int, arguments: tuple[str, ...]) -> str | None:
    """`execute_run` in a process of an executor, which gives it further runs."""
    os.chdir(folder)
    # Ray's handler raises an exception, as if the run had failed
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(threads)
    return execute_run(arguments)


def record_outcome(folder: Path, error: BaseException | None) -> str | None:
    """Write a run's error to its folder, for `status` and `report`, or delete that of an earlier
    start. Returns the error in one line."""
    if error is None:
        (folder / ERROR).unlink(missing_ok=True)
        return None
    line = printable(f"{type(error).__name__}: {' '.join(str(error).split())}")
    with suppress(OSError):  # for example the full disk that the error reports
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ERROR, line + "\n")
    return line
