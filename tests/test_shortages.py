"""A shortage of the machine is an error of one line."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from drawn import arguments
from finished import slowdown
from torch.utils.data import DataLoader

from common.start import ROOT, required_packages
from experiments import environment
from experiments.session import cli_main

pytestmark = pytest.mark.slow


class Killed(torch.utils.data.Dataset):
    """Its processes are killed, as Linux does where the memory is full."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def raising(error, cause=None):
    """A command that raises the error from a hidden cause."""

    def run():
        try:
            raise cause or ValueError
        except Exception:
            raise error from None

    return run


GPU, FULL, FILES = "the memory of the GPU is full", "the memory is full", "too many files are open"
EMFILE = OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("run", "what", "remedy"),
    [
        (lambda: torch.empty(2**60, dtype=torch.uint8), FULL, "lower the batch size"),
        (lambda: list(DataLoader(Killed(), num_workers=1, timeout=1)), FULL, "lower DATALOADER.NUM_WORKERS"),
        (raising(MemoryError()), FULL, "MODEL.BACKBONE.CHECKPOINT_TEXT True"),
        (raising(torch.OutOfMemoryError("CUDA out of memory.")), GPU, "MODEL.BACKBONE.CHECKPOINT_TEXT True"),
        (raising(RuntimeError("CUDA error: out of memory")), GPU, "lower the batch size"),
        (raising(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")), GPU, "lower the batch size"),
        (raising(RuntimeError("unable to write to file </torch_12_3>: No")), "the shared memory is full", "/dev/shm"),
        (raising(EMFILE), FILES, "`ulimit -n 4096`"),
        (raising(RuntimeError("Communication ..."), EMFILE), FILES, "lower DATALOADER.NUM_WORKERS"),
        (raising(OSError(errno.ENOSPC, "No space left on device", "log.txt")), "the disk is full", "free some space"),
    ],
)
def test_shortage_ends_in_one_line(run, what, remedy, ended):
    error = ended(lambda: cli_main(run)).error
    assert error.startswith(f"error: {what} (") and remedy in error


@pytest.mark.parametrize(
    ("folder", "remedy"),
    [("file", "move that file away"), ("file/below", "move the file of that name away"), ("a" * 300, "a shorter path")],
)
def test_a_place_that_cannot_be_a_folder_has_a_remedy(folder, remedy, ended, tmp_path):
    (tmp_path / "file").touch()
    error = ended(lambda: cli_main(lambda: (tmp_path / folder).mkdir(exist_ok=True))).error
    assert str(tmp_path / folder) in error and remedy in error


def test_other_errors_are_bugs(ended):
    with pytest.raises(RuntimeError, match="the shapes differ"):
        ended(lambda: cli_main(raising(RuntimeError("the shapes differ"))))


def execute(code):
    """Run a program that calls `run_command`."""
    code = f"import atexit, os, signal, sys, threading, time\nfrom experiments.session import run_command\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


ENDS = [("pass", 0, ""), ("sys.exit(3)", 3, ""), ("sys.exit('why')", 1, "why"), ("raise ValueError", 1, "ValueError")]


@pytest.mark.parametrize(("end", "status", "error"), ENDS)
def test_a_command_ends_with_its_status_after_all_output_and_handlers(end, status, error):
    done = execute(f"""
def main():
    atexit.register(print, "handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("output")
    {end}

run_command(main)
""")
    assert (done.returncode, done.stdout) == (status, "output\nthread\nhandler\n")
    assert done.stderr.strip().endswith(error) and bool(done.stderr) == bool(error)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_very_end_keeps_the_status_and_prints_nothing(number):
    """torchrun ended a rank that had failed, which printed the traceback of a handler."""
    done = execute(f"""
atexit.register(lambda: os.kill(os.getpid(), {number}))
run_command(lambda: sys.exit(3))
""")
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_has_no_reader_and_no_error(closed, tmp_path):
    code = "from experiments.session import run_command as run; run(lambda: print('a', file=open('b', 'w')))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = ["sh", "-c", f'exec "$0" -c "{code}" {closed}', sys.executable]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "b").read_text() == "a\n"


@pytest.mark.parametrize("error", [ImportError("libtorch_cpu.so: failed to map segment"), MemoryError(), OSError("x")])
def test_unloadable_library_ends_in_one_line(error, capsys):
    with pytest.raises(SystemExit) as end, required_packages():
        raise ImportError("a long text about numpy") from error
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot load a library (") and "a long text" not in line
    with pytest.raises(ImportError, match="cannot import name"), required_packages():
        raise ImportError("cannot import name 'a' from 'b'")


DELETING = """
class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

def main():
    for number in range(5):  # the first interrupts are dropped
        Deleted()
    time.sleep(20)

run_command(main)
"""


def test_an_interrupt_while_an_object_is_deleted_is_not_lost():
    """Python dropped it with a traceback, and the run continued."""
    begun = time.monotonic()
    done = execute(DELETING)
    assert (done.returncode, done.stdout) == (130, "") and time.monotonic() - begun < 15 * slowdown()
    assert done.stderr.strip() == "Interrupted. Run the same command again to resume from the last complete epoch."


OLD = "The NVIDIA driver on your system is too old (found version 11040)"


@pytest.mark.parametrize("error", [RuntimeError(f"{OLD}. Please update your GPU driver"), AssertionError(OLD)])
def test_gpu_unusable_by_torch_is_named(error, launch, eurosat, tiny, monkeypatch, tmp_path):
    """A driver too old for the build of torch, or a build for CPUs, meant a run on the CPU without a word."""

    def fail():
        raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(environment, "DRIVER", tmp_path / "none")
    assert environment.unused_gpu() == ""
    monkeypatch.setattr(environment, "DRIVER", tiny)  # a file
    argv = arguments(eurosat, tiny, tmp_path / "out", trainer="ZeroshotCLIP", options=["--eval-only"])
    ended = launch(*argv)
    assert ended.status == 0 and f"although there is an NVIDIA GPU: {OLD} (docs/install.md" in ended.printed
    assert "NVIDIA" not in launch(*argv, "USE_CUDA", False).printed
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environment.unused_gpu() == ""
