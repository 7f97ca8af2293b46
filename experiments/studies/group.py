"""A run on several GPUs of one machine: processes that execute it together, as its ranks."""

import os
import socket
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path

from ..arguments import parse_arguments
from ..ranks import joined
from ..run import train_and_test
from .worker import WorkerDied, init_worker, process_context, settle


def execute_in_group(run: Sequence[str], count: int, threads: int) -> str | None:
    """Execute a run of train.py with these arguments in new processes; their output goes to log.txt only.

    Args:
        run: the arguments.
        count: how many ranks.
        threads: of each.

    Returns:
        its error in one line, or None: as `execute_run`.

    Raises:
        WorkerDied: one of the processes was killed.
    """
    context = process_context()
    ours, theirs = context.Pipe(duplex=False)
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # those of this task; the processes have another one's environment
    gpus = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    ranks = []
    for rank in range(count):
        variables = common | gpus | {"RANK": rank, "LOCAL_RANK": rank}
        arguments = theirs, threads, {name: str(value) for name, value in variables.items()}, tuple(run)
        ranks.append(context.Process(target=execute_as_rank, args=arguments))
        ranks[-1].start()
    theirs.close()  # so that `recv` raises EOFError when the processes end
    try:
        answer = ours.recv()
    except EOFError:
        answer = WorkerDied("rank 0 ended without a result")
    for process in ranks:
        process.join()
    if killed := [rank for rank, process in enumerate(ranks) if (process.exitcode or 0) < 0]:
        code = ranks[killed[0]].exitcode
        raise WorkerDied(f"rank {killed[0]} ended with exit code {code} (-9 usually means: out of memory)")
    if isinstance(answer, WorkerDied):
        raise answer
    return answer


def free_port() -> int:
    """A port that nothing uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def execute_as_rank(answer: Connection, threads: int, variables: dict[str, str], run: Sequence[str]) -> None:
    """Execute a run as one of its ranks, with these variables of the environment; rank 0 sends its error, or None."""
    init_worker(threads)
    os.environ.update(variables)
    args, error = parse_arguments(list(run)), None
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), joined():
            train_and_test(args, wait=True)
    except BaseException as caught:  # noqa: BLE001 - it is the run's
        error = caught
    if variables["RANK"] == "0":
        answer.send(settle(Path(args.output_dir), error))
