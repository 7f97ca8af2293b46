"""A shortage of the machine is an error of one line."""

import errno
import resource
import subprocess
import sys

import pytest
import torch
from drawn import arguments, error_lines
from torch.utils.data import DataLoader

from common.start import ROOT, required_packages
from experiments.session import cli_main
from experiments.shortages import allow_open_files

pytestmark = pytest.mark.slow


def out_of_memory():
    torch.empty(2**60, dtype=torch.uint8)


def in_a_worker():
    list(DataLoader(Killed(), num_workers=1, timeout=3))  # it looks for the process after that time


class Killed(torch.utils.data.Dataset):
    """Its processes are killed, as Linux does where the memory is full."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


def raising(error, cause=None):
    def run():
        try:
            raise cause or ValueError
        except Exception:
            raise error from None

    return run


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (out_of_memory, "the memory is full: lower the batch size (of tools/predict.py: --batch-size; of a run: DATA"),
        (in_a_worker, "a process that loads images was killed: the memory may be full: lower DATALOADER.NUM_WORKERS"),
        (raising(MemoryError()), "the memory is full"),
        (raising(RuntimeError("can't start new thread")), "the memory is full"),
        (raising(OSError(errno.ENOMEM, "Cannot allocate memory")), "the memory is full"),
        (raising(SystemError("error return without exception set")), "a library failed: the memory may be full"),
        (raising(torch.OutOfMemoryError("CUDA out of memory.")), "the memory of the GPU is full"),
        (raising(OSError(errno.EMFILE, "Too many open files")), "too many files are open: raise the limit by `ulimit"),
        (raising(RuntimeError("Communication ..."), OSError(errno.EMFILE, "")), "too many files are open"),
    ],
)
def test_shortage_ends_in_one_line(run, words, ended):
    status, _, errors = ended(lambda: cli_main(run))
    assert (status, len(errors)) == (2, 1), errors
    assert errors[0].startswith(f"error: {words}")


def test_other_errors_are_bugs(ended):
    with pytest.raises(RuntimeError, match="the shapes differ"):
        ended(lambda: cli_main(raising(RuntimeError("the shapes differ"))))


def test_limit_of_open_files_is_raised_as_far_as_needed(monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "setrlimit", lambda what, values: limits.append(values))
    for limit, highest, workers in ((20, 4096, 2), (20, resource.RLIM_INFINITY, 8), (1024, 4096, 8), (20, 20, 0)):
        monkeypatch.setattr(resource, "getrlimit", lambda what, values=(limit, highest): values)
        allow_open_files(workers)
    assert limits == [(64, 4096), (160, resource.RLIM_INFINITY)]


def test_too_few_open_files_for_the_workers(refused, eurosat, tiny, tmp_path, monkeypatch):
    """With 20 the workers used to hang."""
    monkeypatch.setattr(resource, "getrlimit", lambda what: (20, 20))
    argv = arguments(eurosat, tiny, tmp_path / "out", "DATALOADER.NUM_WORKERS", 2)
    refused(argv, "20 files may be open, 2 workers need 64: raise the limit by `ulimit -n 64`")


@pytest.mark.parametrize("error", [ImportError("libtorch_cpu.so: failed to map segment"), MemoryError(), OSError("x")])
def test_unloadable_library_ends_in_one_line(error, capsys):
    with pytest.raises(SystemExit) as end, required_packages():
        raise ImportError("a long text about numpy") from error
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot load a library (") and "a long text" not in line
    with pytest.raises(ImportError, match="cannot import name"), required_packages():
        raise ImportError("cannot import name 'a' from 'b'")


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit", ["-n 20", *(pytest.param(limit, marks=pytest.mark.thorough) for limit in ("-v 300000", "-v 800000"))]
)
def test_limits_of_the_shell(limit, eurosat, tiny, tmp_path):
    argv = arguments(eurosat, tiny, tmp_path / "out", "DATALOADER.NUM_WORKERS", 2)
    command = ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", sys.executable, f"{ROOT}/train.py", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, len(error_lines(done.stderr))) == (2, 1), done.stderr
