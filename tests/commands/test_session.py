"""How a command ends: its exit status, one line for an error of its user, and what is a bug."""

import errno
import os
import subprocess
import sys
import threading

import pytest
import torch
from dassl.utils.logger import Logger
from drawn import arguments

from common.start import ROOT, required_packages
from runs import results
from runs.session import run_command

pytestmark = pytest.mark.slow


def raising(error, cause=None):
    """A command that raises the error from a hidden cause."""

    def run():
        try:
            raise cause or ValueError
        except Exception:
            raise error from None

    return run


EMFILE = OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("run", "what", "remedy"),
    [
        (raising(MemoryError()), "the memory is full", "MODEL.BACKBONE.CHECKPOINT_TEXT True"),
        (
            raising(torch.OutOfMemoryError("CUDA out of memory.")),
            "the memory is full",
            "lower the batch size",
        ),
        (
            raising(RuntimeError("Communication ..."), EMFILE),
            "too many files are open",
            "`ulimit -n 4096`",
        ),
        (
            raising(OSError(errno.ENOSPC, "No space left on device", "log.txt")),
            "the disk is full",
            "free some space",
        ),
    ],
)
def test_shortage_ends_in_one_line(run, what, remedy, ended):
    hook = threading.excepthook
    error = ended(lambda: run_command(run)).error
    assert error.startswith(f"error: {what} (") and remedy in error
    assert threading.excepthook is hook


class OthersUsageError(Exception):
    """As click and wandb have one."""


OthersUsageError.__name__ = "UsageError"
BUGS = {
    "another class of the name": OthersUsageError("a bug"),
    "a file of the package": FileNotFoundError(
        errno.ENOENT, "No such file", str(ROOT / "clip/vocabulary.gz")
    ),
    "a file of a library": FileNotFoundError(
        errno.ENOENT, "No such file", f"{sys.prefix}/lib/site-packages/a.so"
    ),
    "no file": OSError("a socket"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_other_errors_are_bugs_with_their_traceback(bug, ended):
    with pytest.raises(type(BUGS[bug])):
        ended(lambda: run_command(raising(BUGS[bug])))


def execute(code, shell="", cwd=ROOT):
    """Run a program that calls `run_command`, with the words `shell` of a shell behind it."""
    code = f"import os, signal, sys, time\nfrom runs.session import run_command\n{code}"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {shell}', sys.executable, code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


ENDS = [
    ("pass", 0, ""),
    ("sys.exit(3)", 3, ""),
    ("sys.exit('why')", 1, "why"),
    ("raise ValueError", 1, "ValueError"),
]
ENDS += [
    (
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
        130,
        "Interrupted. Run the same command again to",
    )
]
ENDS += [("raise FloatingPointError('a' + chr(27) + '[2J')", 2, r"error: a\x1b[2J")]
ENDS += [("raise FloatingPointError('a' * 9999)", 2, f"error: {'a' * 1000} ... {'a' * 1000}")]


@pytest.mark.parametrize(("end", "status", "error"), ENDS)
def test_a_command_ends_with_its_status_after_all_output(end, status, error):
    done = execute(f"def main():\n    print('output')\n    {end}\nrun_command(main)")
    assert (done.returncode, done.stdout) == (status, "output\n")
    assert error in done.stderr and bool(done.stderr) == bool(error) and "\x1b" not in done.stderr


DELETING = """
class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

def main():
    Deleted()
    time.sleep(20)

run_command(main)
"""


def test_an_interrupt_while_an_object_is_deleted_is_not_lost():
    """Python dropped it with a traceback, and the run continued: the data loader deletes objects in
    each epoch.
    """
    done = execute(DELETING)
    assert (done.returncode, done.stdout) == (130, "")
    assert (
        done.stderr.strip()
        == "Interrupted. Run the same command again to resume from the last complete epoch."
    )


@pytest.mark.parametrize(
    ("signal", "status", "line"), [("TERM", 130, "Interrupted."), ("0", 2, "NUM_WORKERS")]
)
def test_a_killed_process_of_the_data_loader_prints_one_line(signal, status, line):
    kill = f"(sleep 0.3; kill -{signal} {{os.getpid()}}) &"
    code = f"""
import os
from runs.session import run_command
def main():
    os.system(f"{kill}")
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
run_command(main)
"""
    ended = execute(code)
    assert (ended.returncode, ended.stderr.strip().count("\n")) == (
        status,
        0,
    ) and line in ended.stderr


def test_a_command_with_a_closed_output_fails():
    done = execute("def main():\n    while True: print('output')\nrun_command(main)", "| head -1")
    assert (done.returncode, done.stdout, done.stderr) == (141, "output\n", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_has_no_reader_and_no_error(closed, tmp_path):
    done = execute("run_command(lambda: print('a', file=open('b', 'w')))", closed, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "b").read_text() == "a\n"


def test_a_full_disk_names_the_log():
    logger = Logger("/dev/full")
    # The buffer still holds the line
    for write in (
        lambda: logger.write("a line\n"),
        logger.flush,
    ):
        with pytest.raises(OSError, match="/dev/full"):
            write()
    with pytest.raises(OSError, match="space"):
        logger.file.close()


@pytest.mark.parametrize(
    "error", [ImportError("libtorch_cpu.so: failed to map segment"), MemoryError(), OSError("x")]
)
def test_unloadable_library_ends_in_one_line(error, capsys):
    with pytest.raises(SystemExit) as end, required_packages():
        raise ImportError("a long text about numpy") from error
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot load a library (") and "a long text" not in line
    with pytest.raises(ImportError, match="cannot import name"), required_packages():
        raise ImportError("cannot import name 'a' from 'b'")


OLD = "The NVIDIA driver on your system is too old (found version 11040)"


@pytest.mark.parametrize(
    "error", [RuntimeError(f"{OLD}. Please update your GPU driver"), AssertionError(OLD)]
)
def test_gpu_unusable_by_torch_is_named(error, launch, eurosat, tiny, monkeypatch, tmp_path):
    """A driver too old for the build of torch, or a build for CPUs, meant a run on the CPU without
    a word.
    """

    def fail():
        raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(results, "DRIVER", tmp_path / "none")
    assert results.unused_gpu() == ""
    monkeypatch.setattr(results, "DRIVER", tiny)  # a file
    argv = arguments(
        eurosat, tiny, tmp_path / "out", trainer="ZeroshotCLIP", options=["--eval-only"]
    )
    ended = launch.works(*argv)
    assert f"although there is an NVIDIA GPU: {OLD} (docs/install.md" in ended.printed
    assert "NVIDIA" not in launch(*argv, "USE_CUDA", False).printed
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert results.unused_gpu() == ""
