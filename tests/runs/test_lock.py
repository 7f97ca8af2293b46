"""One folder, one run: a second command is refused, or waits, and neither start nor end of a run
touches another's.
"""

import errno
import fcntl
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest
from drawn import arguments
from yacs.config import CfgNode

from common import lock
from common.errors import UsageError
from common.lock import LOCK, is_locked, locked
from runs import folder as folder_module
from runs.folder import OutputFolder

HOLD = """
import sys, time
from pathlib import Path
from common.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0)


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def refused(folder, words):
    """Taking the lock of the folder is an error of one line with these words, a regular
    expression.
    """
    with pytest.raises(UsageError, match=words) as refusal:
        locked(folder).__enter__()
    assert "\n" not in str(refusal.value)


def test_lock_of_a_killed_process_is_taken_over(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"locked\n"
    refused(tmp_path, "another run is in")
    first.kill()
    first.communicate()
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)


def test_waiting_run_gets_the_folder_when_the_first_has_ended(tmp_path):
    entered = Event()

    def wait():
        with locked(tmp_path / "run", wait=True):
            entered.set()

    with locked(tmp_path / "run"):
        second = Thread(target=wait)
        second.start()
        assert not entered.wait(0.7)
    second.join(10)
    assert entered.is_set()


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_without_locks(number, tmp_path, monkeypatch, capsys):
    """A file takes the place of a missing flock; else the run says that it has no lock."""

    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "run"):
        if number == errno.ENOSYS:
            refused(tmp_path / "run", "another run is in")
        else:
            assert "has no locks: start no other run there" in capsys.readouterr().out


# The files of a start: one that fails removes its own and nothing else


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def spec_of(folder):
    cfg = CfgNode({"OUTPUT_DIR": str(folder), "RESUME": "", "DATASET": {"NAME": "EuroSAT"}})
    return SimpleNamespace(cfg=cfg, args=Namespace(quiet=False), is_finished=False)


@pytest.mark.parametrize("earlier", [(), ("log.txt", "config.yaml")])
@pytest.mark.parametrize("meanwhile", [(), ("prompt_learner/model.pth.tar-1", "log.txt-2026")])
def test_failing_start_keeps_what_others_write(earlier, meanwhile, tmp_path):
    write(tmp_path / "a/run", earlier)
    before = sys.stdout
    with (
        pytest.raises(RuntimeError),
        OutputFolder.claim(spec_of(tmp_path / "a/run")) as folder,
        folder.start(),
    ):
        assert sys.stdout is not before
        write(tmp_path / "a/run", meanwhile)
        raise RuntimeError
    assert sys.stdout is before
    left = {
        path.relative_to(tmp_path / "a/run").as_posix()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert left - {LOCK} == {*earlier, *meanwhile}


# Whole runs


def test_run_finished_while_another_waits_for_the_lock_is_skipped(
    run, launch, eurosat, tiny, tmp_path, monkeypatch
):
    results = run("run", "OPTIM.MAX_EPOCH", 1) / "results.json"
    before = results.read_bytes()
    results.rename(tmp_path / "results.json")
    real = folder_module.locked

    def finish_first(path, wait):
        (tmp_path / "results.json").rename(results)
        return real(path, wait)

    monkeypatch.setattr(folder_module, "locked", finish_first)
    argv = arguments(
        eurosat, tiny, tmp_path / "run", "OPTIM.MAX_EPOCH", 1, options=["--skip-finished"]
    )
    assert launch(*argv).printed.startswith("Already done")
    assert results.read_bytes() == before


def test_unfinished_files_of_a_killed_run_are_removed(run, tmp_path):
    (tmp_path / ".results.json.4711-4711.partial").write_text("half")
    (tmp_path / ".results.json.partial").write_text("of somebody")
    run("", "OPTIM.MAX_EPOCH", 1)
    assert [name for name in names(tmp_path) if name.startswith(".")] == [
        LOCK,
        ".results.json.partial",
    ]


def test_two_starts_at_the_same_moment_do_not_report_a_run(tmp_path):
    (tmp_path / LOCK).touch()
    with (tmp_path / LOCK).open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        Thread(target=lambda: (Event().wait(0.02), fcntl.flock(other, fcntl.LOCK_UN))).start()
        assert not is_locked(tmp_path)


def test_a_folder_where_no_lock_can_be_made_cannot_be_written_to():
    refused(Path("/proc"), "cannot write to the output folder")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_a_folder_with_a_link_or_a_pipe_is_not_written_to(make, tmp_path):
    make(tmp_path / "x")
    refused(tmp_path, "x is a link or not a regular file: replace it, or choose another")
    assert not is_locked(tmp_path)
