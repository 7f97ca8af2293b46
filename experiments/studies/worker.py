"""A process of a study: it executes runs, and reports how each of them ended."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from clip import keep_backbones
from common.files import write_text

from ..arguments import parse_arguments
from ..results import ERROR
from ..run import train_and_test


def process_context() -> Any:
    """How processes start: not forked from this one, which may have used CUDA, but from one that has only imported what
    all runs need."""
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    own = f"{__package__}.preloaded"
    context.set_forkserver_preload(["open_clip", "torch.utils.tensorboard", "torchvision", own])
    # Inherited by multiprocessing's resource tracker, which would warn of every semaphore that a killed process leaves.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    resource_tracker.ensure_running()  # before the next lines, as it unblocks signals
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C must not interrupt its imports
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return context


def init_worker(threads: int) -> None:
    """Prepare a process that the main process controls: it ignores Ctrl-C and never outlives the main process."""
    torch.set_num_threads(threads)
    keep_backbones(1)  # the next run often has the same
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

    If another process executes the run, wait for it. Then skip the run if it is finished, else resume it.

    Returns:
        None, or the run's error in one line. error.txt in its folder holds it until the run succeeds.
    """
    args, error = parse_arguments(list(arguments)), None
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            train_and_test(args, wait=True)
    except (Exception, SystemExit) as caught:  # noqa: BLE001 - an error of one run does not stop the others
        error = caught
    return record_outcome(Path(args.output_dir), error)


def record_outcome(folder: Path, error: BaseException | None) -> str | None:
    """Write a run's error to its folder, for `status` and `report`, or delete that of an earlier start.

    Returns:
        the error in one line.
    """
    if error is None:
        (folder / ERROR).unlink(missing_ok=True)
        return None
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    with suppress(OSError):  # for example the full disk that the error reports
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ERROR, line + "\n")
    return line
