"""Runs in other processes: dying, locked, counted. tests/kills/ kills a study at random moments."""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError  # of Python 3.10, too
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from types import SimpleNamespace

import pytest
from filelock import FileLock
from finished import finish

from common.lock import LOCK
from studies import executor
from studies.executor import ERROR, TRIES, LocalExecutor, execute_run, execute_runs
from studies.planned import Run
from studies.progress import Progress
from studies.study_file import load

pytestmark = pytest.mark.slow


class Deadly(LocalExecutor):
    """Its only process is killed at the begin of each run of `unlucky`, as by a full memory."""

    unlucky: Run

    def __init__(self):
        super().__init__(1)
        self.started = []

    def submit(self, run):
        self.started.append(run)
        future = super().submit(run)
        if run == self.unlucky:
            for process in active_children():
                process.kill()
        return future


@pytest.mark.thorough
def test_dead_process_fails_only_its_run(study_file):
    study = load(study_file("deaths", trainers={"ZeroshotCLIP": "small"}))
    ((Deadly.unlucky, other),) = study.sequences()
    failed = execute_runs([(Deadly.unlucky,), (other,)], deadly := Deadly(), "deaths")
    assert Counter(deadly.started) == {Deadly.unlucky: TRIES, other: 1}
    progress = Progress(study)
    assert failed == progress.failed and list(failed) == [Deadly.unlucky]
    assert failed[Deadly.unlucky].startswith("ChildProcessError: its process died 3 times")
    assert list(progress.done) == [other] and active_children() == []
    assert (
        execute_runs([(Deadly.unlucky,)], LocalExecutor(1), "again") == {}
        and Progress(study).failed == {}
    )


@pytest.mark.thorough
def test_interrupt_ends_all_processes(study_file):
    study = load(study_file("interrupted"))
    with pytest.raises(KeyboardInterrupt), LocalExecutor(2) as local:
        futures = [local.submit(trained) for trained, *_ in study.sequences()]
        while not Progress(study).running:
            time.sleep(0.05)
        raise KeyboardInterrupt
    assert all(isinstance(future.exception(), BrokenProcessPool) for future in futures)
    assert active_children() == [] and Progress(study).done == {}


def lives(pid):
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout
    return bool(state) and not state.startswith("Z")


def hold(pipe):
    """A main process whose worker is idle."""
    local = LocalExecutor(1)
    future = local.submit(SimpleNamespace(arguments=("--unknown",)))
    pipe.send(active_children()[0].pid)
    future.exception()
    pipe.send("started")
    time.sleep(600)


@pytest.mark.thorough
def test_process_ends_with_the_main_process_and_not_by_ctrl_c():
    context = get_context("fork")
    ours, theirs = context.Pipe()
    main = context.Process(target=hold, args=(theirs,))
    main.start()
    pid = ours.recv()
    os.kill(pid, signal.SIGINT)
    assert ours.recv() == "started"
    assert lives(pid)
    main.kill()
    main.join()
    deadline = time.time() + 60
    while lives(pid):
        assert time.time() < deadline
        time.sleep(0.1)


def test_run_of_another_process_is_waited_for(study_file):
    study = load(study_file("locked", trainers={"ZeroshotCLIP": "small"}))
    run = study.sequences()[0][0]
    run.folder.mkdir(parents=True)
    with ThreadPoolExecutor(1) as other:
        with FileLock(run.folder / LOCK):
            waiting = other.submit(execute_run, run.arguments)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            assert Progress(study).running == [run]
            assert [path.name for path in run.folder.iterdir()] == [LOCK]
        assert waiting.result(timeout=120) is None
    progress = Progress(study)
    assert (list(progress.done), progress.running) == ([run], [])
    before = (run.folder / "results.json").stat().st_mtime_ns
    assert execute_run(run.arguments) is None
    assert (run.folder / "results.json").stat().st_mtime_ns == before


def test_error_of_a_run_has_no_control_characters(tmp_path):
    line = executor.record_outcome(tmp_path, ValueError("bad \x1b[31m\nname"))
    assert (
        line == "ValueError: bad \\x1b[31m name" and (tmp_path / ERROR).read_text() == f"{line}\n"
    )


def test_run_without_a_test_has_failed(study_file, monkeypatch):
    """TEST.NO_TEST of a dataset in BY_DATASET: each start of the study trained it again."""
    monkeypatch.setattr(executor, "train_and_test", lambda *args, **options: None)
    run = load(study_file("untested")).runs()[0]
    assert "the run wrote no results: leave TEST.NO_TEST out" in execute_run(run.arguments)


def test_tests_of_prompts_that_are_learned_again_are_repeated(study_file, capsys):
    submitted = []

    class Submitted(LocalExecutor):
        def submit(self, run):
            submitted.append(run)
            shutil.rmtree(run.folder, ignore_errors=True)
            finish(run, 60.0)
            future = Future()
            future.set_result(None)
            return future

    study = load(study_file("again", trainers={"CoOp": "small"}, seeds=[1, 2]))
    (first, _), (trained, test) = study.sequences()
    for run in (first, test):  # the user has deleted a training run
        finish(run, 50.0)
    execute_runs(study.sequences(), Submitted(1), "again")
    assert submitted[:2] == [trained, test] and len(submitted) == 3
    lines = [
        f"again: {number} of 4 runs: {run.folder}, accuracy 60.00%"
        for number, run in enumerate(submitted, 2)
    ]
    assert capsys.readouterr().out.splitlines() == lines  # of a log, where no bar moves


def test_progress_and_remaining_time(study_file):
    study = load(study_file("counted", seeds=[1, 2]))
    (base, new), (other, _), *_ = study.sequences()
    assert str(Progress(study)) == "0 of 8 runs are done, 0 are running, 0 have failed, 8 are left"
    for run, seconds in ((base, 100), (other, 40)):
        finish(run, 50.0, train_seconds=seconds - 1.0, test_seconds=1.0)
    new.folder.mkdir(parents=True)
    (new.folder / ERROR).write_text("OSError: no space left\n")
    progress = Progress(study)
    assert progress.failed == {new: "OSError: no space left"}
    # The second training of each method is estimated by its first, the three tests by all runs.
    assert progress.seconds_left() == pytest.approx(100 + 40 + 3 * 70)
    assert "about 05:50 to go (1 at a time)" in str(progress)
