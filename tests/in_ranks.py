"""Functions that several processes execute as the ranks of one run."""

import pickle
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def in_ranks(count, function):
    """What `function()` returns on each of `count` ranks; with one, it is called in this process.

    Ranks are forks of this process. An exception on one of them is a failed test, with its traceback.
    """
    if count == 1:
        return [function()]
    if torch.cuda.is_available():
        pytest.skip("a process that has used CUDA cannot fork")
    with tempfile.TemporaryDirectory() as folder:
        start_processes(serve, (function, Path(folder), count), count, daemon=True, start_method="fork")
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(count)]


def serve(rank, function, folder, count):
    patience = timedelta(seconds=60)  # for the other ranks
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count, timeout=patience)
    Path(folder, str(rank)).write_bytes(pickle.dumps(function()))
