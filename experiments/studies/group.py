"""A run on several GPUs of one machine: processes that execute it together, as its ranks."""

import os
import socket
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, spawn

from ..arguments import parse_arguments
from ..ranks import joined
from ..results import ERROR
from ..run import train_and_test
from ..session import handle_interrupts
from .worker import WorkerDied, settle


def execute_in_group(run: Sequence[str], count: int, threads: int) -> str | None:
    """Execute a run of train.py with these arguments in new processes, which end with this one.

    Args:
        run: the arguments.
        count: how many ranks.
        threads: of each.

    Returns:
        its error in one line, or None: as `execute_run`.

    Raises:
        WorkerDied: one of the processes was killed.
    """
    folder = Path(parse_arguments(list(run)).output_dir)
    settle(folder, None)
    try:
        spawn(execute_as_rank, (count, free_port(), threads, tuple(run)), nprocs=count)
    except (ProcessExitedException, ProcessRaisedException) as ended:
        if getattr(ended, "exit_code", 0) < 0 or not (folder / ERROR).is_file():
            raise WorkerDied(f"{ended} (SIGKILL usually means: out of memory)") from ended
        return (folder / ERROR).read_text().strip()
    return None


def free_port() -> int:
    """A port that nothing uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def execute_as_rank(rank: int, count: int, port: int, threads: int, run: Sequence[str]) -> None:
    """Execute a run as one of its ranks; its output goes to log.txt only, and its error to error.txt."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(threads)
    handle_interrupts()
    args = parse_arguments(list(run))
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), joined():
            train_and_test(args, wait=True)
    except Exception as error:
        settle(Path(args.output_dir), error)
        raise
