"""Functions that several processes execute as the ranks of one run."""

import pickle
import sys
import tempfile
import traceback
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

PATIENCE = 300


def in_ranks(count, function):
    """What `function()` returns on each of `count` ranks; with one, it is called in this process.

    Ranks are forks of this process. An exception on one of them is a failed test, with its traceback.
    """
    if count == 1:
        return [function()]
    if torch.cuda.is_available():
        pytest.skip("a process that has used CUDA cannot fork")
    context = get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        arguments = [(function, Path(folder, "store"), rank, count, pipe[1]) for rank, pipe in enumerate(pipes)]
        processes = [context.Process(target=serve, args=each, daemon=True) for each in arguments]
        for process, (_, sending) in zip(processes, pipes, strict=True):
            process.start()
            sending.close()
        try:
            answers = [answer_of(receiving) for receiving, _ in pipes]
        finally:
            for process in processes:
                process.terminate()
                process.join()
    failed = [f"rank {rank}:\n{error}" for rank, (error, _) in enumerate(answers) if error]
    assert not failed, "\n".join(failed)
    return [result for _, result in answers]


def answer_of(receiving):
    try:
        if not receiving.poll(PATIENCE):
            return f"it takes more than {PATIENCE} seconds", None
        return pickle.loads(receiving.recv_bytes())
    except EOFError:
        return "it ended early", None


def serve(function, store, rank, count, sending):
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=60)
        )
        answer = None, function()
    except BaseException:  # noqa: BLE001 - the parent raises it
        answer = traceback.format_exc(), None
    sending.send_bytes(pickle.dumps(answer))  # `send` would share the memory of tensors with this process
    sending.close()
    sys.stdout.flush()
