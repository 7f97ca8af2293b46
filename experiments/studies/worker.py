"""A process that executes runs, one after another."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from clip import keep_backbones
from common.files import write_text

from ..arguments import parse_arguments
from ..results import ERROR
from ..run import train_and_test


class WorkerDied(RuntimeError):
    """Raised for a run whose process ended during it."""


def process_context() -> Any:
    """How processes start: not forked from this one, which may have used CUDA, but from one that has only imported what
    all runs need."""
    context = get_context("forkserver") if sys.platform == "linux" else get_context("spawn")
    context.set_forkserver_preload(["open_clip", "torch.utils.tensorboard", "torchvision"])
    if sys.platform == "linux":
        resource_tracker.ensure_running()  # here, as it unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C must not interrupt its imports
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return context


class Worker:
    """A process of this machine.

    Args:
        threads: its number of threads.
    """

    def __init__(self, threads: int):
        context = process_context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, threads))
        self.process.start()
        theirs.close()  # so that `recv` raises EOFError when the process ends

    def call(self, arguments: Sequence[str]) -> str | None:
        """`execute_run` in the process.

        Raises:
            WorkerDied: the process ended first.
        """
        try:
            self.connection.send(arguments)
            return self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise WorkerDied(
                f"the process ended with exit code {self.process.exitcode} (-9 usually means: out of memory)"
            ) from error

    def stop(self, now: bool = False) -> None:
        """End the process: after its present run, or `now`."""
        if now:
            self.process.terminate()
        with suppress(OSError):
            self.connection.send(None)


def serve(connection: Connection, threads: int) -> None:
    """Execute the runs whose arguments arrive, until None does."""
    init_worker(threads)
    keep_backbones(1)  # its runs often have the same
    with suppress(EOFError):  # the main process was killed
        while (arguments := connection.recv()) is not None:
            connection.send(execute_run(arguments))


def init_worker(threads: int) -> None:
    """Prepare a process that the main process controls: it ignores Ctrl-C and never outlives the main process."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """End this process as soon as the main process ends, even if that was killed."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def execute_run(arguments: Sequence[str]) -> str | None:
    """Execute a run of train.py with these arguments in this process; its output goes to log.txt only.

    If another process executes the run, wait for it; then skip the run if it is finished, else resume it.

    Returns:
        None, or the run's error in one line. error.txt in its folder holds it until the run succeeds.
    """
    args, error = parse_arguments(list(arguments)), None
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            train_and_test(args, wait=True)
    except (Exception, SystemExit) as caught:  # noqa: BLE001 - an error of one run does not stop the others
        error = caught
    return settle(Path(args.output_dir), error)


def settle(folder: Path, error: BaseException | None) -> str | None:
    """Write a run's error to its folder, or delete that of an earlier start; returns it as one line."""
    if error is not None:
        return record_error(folder, error)
    (folder / ERROR).unlink(missing_ok=True)
    return None


def record_error(folder: Path, error: BaseException) -> str:
    """Write the error to the run's folder, for `status` and `report`; returns it as one line."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    with suppress(OSError):  # for example the full disk that the error reports
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ERROR, line + "\n")
    return line
