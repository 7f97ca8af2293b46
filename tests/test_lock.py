"""One folder, one run: a second command is refused, or waits, and neither start nor end of a run touches another's."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from threading import Event, Thread

import pytest
from drawn import arguments
from filelock import FileLock

import experiments.run
import train
from common.errors import UsageError
from experiments import lock
from experiments.lock import HOLDER, LOCK, is_locked, locked, remove_leftover

TWO_LINES = "import sys, time; from pathlib import Path; from experiments.lock import locked\n{}"


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0)


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_second_run_is_refused_with_process_host_and_start_of_the_first(tmp_path):
    with locked(tmp_path / "run"):
        began = json.loads((tmp_path / "run" / HOLDER).read_text())["began"]
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {began}"
        with pytest.raises(UsageError, match=f"another run is in .*: {re.escape(holder)}: wait until") as refusal:
            locked(tmp_path / "run").__enter__()
        assert "\n" not in str(refusal.value)
        assert names(tmp_path / "run") == [LOCK, HOLDER]  # as before


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_refusal_when_the_first_has_not_written_who_it_is(content, tmp_path):
    if content is not None:
        (tmp_path / HOLDER).write_text(content)
    with FileLock(tmp_path / LOCK), pytest.raises(UsageError, match="it has just begun"):
        locked(tmp_path).__enter__()


def test_lock_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "a/run"):
        raise RuntimeError
    assert names(tmp_path) == []


def test_leftover_lock_of_a_finished_run_is_removed(tmp_path):
    for name in (LOCK, HOLDER, "results.json"):
        (tmp_path / name).touch()
    with FileLock(tmp_path / LOCK):
        remove_leftover(tmp_path)  # it is in use
        assert names(tmp_path) == [LOCK, HOLDER, "results.json"]
    remove_leftover(tmp_path)
    assert names(tmp_path) == ["results.json"]


def test_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", TWO_LINES.format(code), tmp_path], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"locked\n"
    with pytest.raises(UsageError, match=f"process {first.pid} on"):
        locked(tmp_path).__enter__()
    first.kill()
    first.communicate()
    assert names(tmp_path) == [LOCK, HOLDER] and not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()
    assert names(tmp_path) == []


def test_waiting_run_gets_the_folder_removed_by_the_first_one(tmp_path):
    entered = Event()

    def wait():
        with locked(tmp_path / "run", wait=True):
            entered.set()

    with locked(tmp_path / "run"):
        second = Thread(target=wait)
        second.start()
        assert not entered.wait(0.7)
    second.join(10)
    assert entered.is_set() and LOCK not in names(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_reported(number, tmp_path, monkeypatch, capsys):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "run"):
        assert "has no locks: start no other run there" in capsys.readouterr().out
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_file_takes_the_place_of_a_missing_flock(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "run"), pytest.raises(UsageError, match=f"process {os.getpid()} on"):
        locked(tmp_path / "run").__enter__()
    assert names(tmp_path) == []


@pytest.mark.parametrize("what", ["file", "link"])
def test_invalid_folder_cannot_be_locked(what, tmp_path):
    if what == "file":
        (tmp_path / "run").write_text("not a folder")
    else:  # whose target would be opened for writing
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="cannot write to the output folder .*run .*: choose another --output-dir"):
        locked(tmp_path / "run").__enter__()
    assert not (tmp_path / "elsewhere").exists()


# Whole runs


@pytest.fixture
def meanwhile(monkeypatch, capsys):
    """`meanwhile(run)`: the next run calls `run()` while it starts, before it builds its trainer."""

    def meanwhile(run):
        build = experiments.run.build_trainer

        def build_trainer(cfg):
            monkeypatch.setattr(experiments.run, "build_trainer", build)
            run()
            return build(cfg)

        monkeypatch.setattr(experiments.run, "build_trainer", build_trainer)

    return meanwhile


def refusal_of(argv):
    with pytest.raises(UsageError, match=f"another run is in .*: process {os.getpid()} on") as refusal:
        train.main(argv)
    return str(refusal.value)


def test_failing_start_does_not_touch_a_run_started_meanwhile(launch, meanwhile, eurosat, tiny, tmp_path):
    """The second would have been sound; the first one's error used to delete its folder."""
    refused = []
    meanwhile(lambda: refused.append(refusal_of(arguments(eurosat, tiny, tmp_path / "a/run"))))
    first = launch(*arguments(eurosat, tiny, tmp_path / "a/run", "INPUT.SIZE", "(224, 224)"))
    assert (first.status, len(refused)) == (2, 1) and "INPUT.SIZE" in first.errors[0]
    assert names(tmp_path) == []


def test_interrupted_start_does_not_touch_a_run_started_meanwhile(launch, meanwhile, eurosat, tiny, tmp_path):
    def second():
        refusal_of(arguments(eurosat, tiny, tmp_path / "run"))
        (tmp_path / "run/file of somebody").write_text("kept")
        signal.raise_signal(signal.SIGTERM)

    meanwhile(second)
    first = launch(*arguments(eurosat, tiny, tmp_path / "run"))
    assert first.status == 130
    assert names(tmp_path / "run") == ["file of somebody"]


@pytest.mark.parametrize("option", ["--eval-only", "--no-train", "--skip-finished"])
def test_all_kinds_of_runs_are_refused(option, launch, eurosat, tiny, tmp_path):
    (tmp_path / "MultiModalPromptLearner").mkdir()
    (tmp_path / "MultiModalPromptLearner/model-best.pth.tar").touch()  # is looked for before the lock
    options = [option, "--model-dir", tmp_path]
    argv = arguments(eurosat, tiny, tmp_path / "run", options=options)
    with locked(tmp_path / "run"):
        ended = launch(*argv)
        assert (ended.status, len(ended.errors)) == (2, 1) and f"process {os.getpid()} on" in ended.errors[0]
        assert names(tmp_path / "run") == [LOCK, HOLDER]


def test_run_finished_while_another_waits_for_the_lock_is_skipped(launch, eurosat, tiny, tmp_path, monkeypatch):
    argv = arguments(eurosat, tiny, tmp_path / "run", "OPTIM.MAX_EPOCH", 1)
    assert launch(*argv).status == 0
    results = tmp_path / "run/results.json"
    before = results.read_bytes()
    results.rename(tmp_path / "results.json")
    real = experiments.run.claimed

    def finish_first(path, wait):
        (tmp_path / "results.json").rename(results)
        return real(path, wait)

    monkeypatch.setattr(experiments.run, "claimed", finish_first)
    again = launch(*argv[: argv.index("INPUT.SIZE")], "--skip-finished", *argv[argv.index("INPUT.SIZE") :])
    assert again.status == 0 and again.printed.startswith("Already done")
    assert results.read_bytes() == before


def test_unfinished_files_of_a_killed_run_are_removed(launch, eurosat, tiny, tmp_path):
    (tmp_path / ".results.json.4711.partial").write_text("half")
    (tmp_path / ".results.json.partial").write_text("of somebody")
    assert launch(*arguments(eurosat, tiny, tmp_path, "OPTIM.MAX_EPOCH", 1)).status == 0
    assert [name for name in names(tmp_path) if name.startswith(".")] == [".results.json.partial"]
