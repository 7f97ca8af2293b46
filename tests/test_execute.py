"""Runs in other processes: dying, locked, counted. tests/kills/ kills a study at random moments."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError  # of Python 3.10, too
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children

import pytest
from filelock import FileLock
from finished import finish

from common.start import ROOT
from experiments.arguments import parse_arguments
from experiments.configuration import setup_cfg
from experiments.lock import LOCK
from experiments.studies import executor
from experiments.studies.executor import ERROR, TRIES, LocalExecutor, execute_run, execute_runs
from experiments.studies.progress import Progress
from experiments.studies.study_file import load

pytestmark = pytest.mark.slow


@pytest.mark.thorough
def test_dead_process_fails_only_its_run(study_file):
    """The process of one run is killed each time, as by a full memory."""
    study = load(study_file("deaths", trainers={"ZeroshotCLIP": "small"}))
    ((unlucky, other),) = study.sequences()
    started = []

    class Deadly(LocalExecutor):
        def submit(self, run):
            before = set(active_children())
            future = super().submit(run)
            started.append(run)
            for process in set(active_children()) - before if run == unlucky else ():
                process.kill()
            return future

    failed = execute_runs([(unlucky,), (other,)], Deadly(2), "deaths")
    assert list(failed) == [unlucky] and Counter(started) == {unlucky: TRIES, other: 1}
    progress = Progress(study)
    assert failed[unlucky].startswith("ChildProcessError: its process died 3 times") and progress.failed == failed
    assert list(progress.done) == [other] and not active_children()
    assert execute_runs([(unlucky,)], LocalExecutor(1), "again") == {} and Progress(study).failed == {}


def test_process_killed_between_two_runs_is_replaced(study_file):
    first, second = (sequence[0] for sequence in load(study_file("idle")).sequences())
    for run in (first, second):
        finish(run, 50.0)
        (run.folder / "config.yaml").write_text(setup_cfg(parse_arguments(list(run.arguments))).dump())
    with LocalExecutor(1) as local:
        assert local.submit(first).result(timeout=120) is None
        (process,) = active_children()
        process.kill()
        process.join()
        assert isinstance(local.submit(second).exception(timeout=10), BrokenProcessPool)  # `execute_runs` tries again
        assert local.submit(second).result(timeout=120) is None


def test_interrupt_waits_for_a_process_that_is_starting(study_file, monkeypatch):
    """Its semaphores were gone when it asked for them: a traceback, as nothing knew it yet."""
    (sequence, *_), started = load(study_file("interrupted", trainers={"ZeroshotCLIP": "small"})).sequences(), []

    class Pool(ThreadPoolExecutor):
        def __init__(self, *arguments):
            super().__init__(1)

        def submit(self, *arguments):
            signal.raise_signal(signal.SIGTERM)
            started.append(arguments)
            return super().submit(len, ())

    monkeypatch.setattr(executor, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(executor, "process_context", lambda: None)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), LocalExecutor(1) as local:
            local.submit(sequence[0])
        assert len(started) == len(local.pools) == 1
        assert signal.getsignal(signal.SIGTERM) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_interrupt_ends_all_processes(study_file):
    study = load(study_file("interrupted"))
    first, second = (sequence[0] for sequence in study.sequences())
    with pytest.raises(KeyboardInterrupt), LocalExecutor(2) as local:
        futures = [local.submit(first), local.submit(second)]
        while not Progress(study).running:
            time.sleep(0.05)
        raise KeyboardInterrupt
    assert not active_children()
    assert all(isinstance(future.exception(), BrokenProcessPool) for future in futures)
    assert Progress(study).done == {}


def test_run_of_another_process_is_waited_for(study_file):
    study = load(study_file("locked", trainers={"ZeroshotCLIP": "small"}))
    run = study.sequences()[0][0]
    run.folder.mkdir(parents=True)
    with ThreadPoolExecutor(1) as other:
        with FileLock(run.folder / LOCK):
            waiting = other.submit(execute_run, run.arguments)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
            assert Progress(study).running == [run]
            assert [path.name for path in run.folder.iterdir()] == [LOCK]
        assert waiting.result(timeout=120) is None
    progress = Progress(study)
    assert (list(progress.done), progress.running) == ([run], [])
    before = (run.folder / "results.json").stat().st_mtime_ns
    assert execute_run(run.arguments) is None
    assert (run.folder / "results.json").stat().st_mtime_ns == before


def test_run_without_a_test_has_failed(study_file, monkeypatch):
    """TEST.NO_TEST of a dataset in BY_DATASET: each start of the study trained it again."""
    monkeypatch.setattr(executor, "train_and_test", lambda *args, **options: None)
    run = load(study_file("untested")).runs()[0]
    assert "the run wrote no results: leave TEST.NO_TEST out" in execute_run(run.arguments)


def test_a_finished_study_starts_no_processes(study_file):
    class Unwanted(LocalExecutor):
        def __enter__(self):
            raise AssertionError

    study = load(study_file("finished"))
    for run in study.runs():
        finish(run, 50)
    assert execute_runs(study.sequences(), Unwanted(1), "finished") == {}


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
    lines = [f"again: {number} of 4 runs: {run.folder}" for number, run in enumerate(submitted, 2)]
    assert capsys.readouterr().out.splitlines() == lines  # of a log, where no bar moves


def test_progress_and_remaining_time(study_file):
    study = load(study_file("counted", seeds=[1, 2]))
    (base, new), (other, _), *_ = study.sequences()
    assert str(Progress(study)) == "0 of 8 runs are done, 0 are running, 0 have failed, 8 are left"
    for run, seconds in ((base, 100), (other, 40)):
        finish(run, 50.0)
        (run.folder / "config.yaml").write_text("SEED: 1\n")
        written = (run.folder / "results.json").stat().st_mtime
        os.utime(run.folder / "config.yaml", (written - seconds, written - seconds))
    new.folder.mkdir(parents=True)
    (new.folder / ERROR).write_text("OSError: no space left\n")
    progress = Progress(study)
    assert progress.failed == {new: "OSError: no space left"}
    # The second training of each method is estimated by its first, the three tests by all runs.
    assert progress.seconds_left() == pytest.approx(100 + 40 + 3 * 70)
    assert "about 05:50 to go (1 at a time)" in str(progress)


CTRL_C = """
import os, signal, threading, time
from experiments.studies.executor import process_context
signal.signal(signal.SIGINT, lambda *caught: None)
press = lambda: [time.sleep(0.1) or os.killpg(0, signal.SIGINT) for _ in range(100)]
threading.Thread(target=press, daemon=True).start()
process = process_context().Process(target=print, args=("it lives",))
process.start()
process.join()
"""


GONE = """
import _multiprocessing, os
from experiments.studies.executor import process_context
lock = process_context().Lock()
process = process_context().Process(target=print, args=(lock,))
_multiprocessing.sem_unlink(lock._semlock.name)  # as at the end of the main process
process.start()
process.join()
print(process.exitcode, flush=True)
os._exit(0)
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="no fork server")
@pytest.mark.parametrize(("program", "printed"), [(CTRL_C, "it lives\n"), (GONE, "1\n")])
def test_a_signal_while_processes_start_gives_no_traceback_of_theirs(program, printed):
    """The fork server imports torch for seconds, and Ctrl-C reaches it too. After SIGTERM at the start of a study, the
    semaphores of a process were gone before it had begun."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "start_new_session": True}
    done = subprocess.run([sys.executable, "-c", program], **options)
    assert (done.returncode, done.stdout) == (0, printed) and "Traceback" not in done.stderr, done.stderr


def test_each_seed_of_zero_shot_clip_computes_its_own_results(study_file, tmp_path):
    """The second one reads the image features that the first one has kept."""
    trainers = {"ZeroshotCLIP": {"config": "small", "overrides": {"DATALOADER.NUM_WORKERS": 0}}}
    study = load(study_file("zero", trainers=trainers, seeds=[1, 2], cache=str(tmp_path / "cache")))
    assert execute_runs(study.sequences(), LocalExecutor(1), "zero") == {}
    found = [(run, json.loads((run.folder / "results.json").read_text())) for run in study.runs()]
    assert len({(run.classes, results["accuracy"]) for run, results in found}) == 2
    for run, results in found:
        assert results["seed"] == run.seed and "evaluated_in" not in results
        assert (": image features\n" in (run.folder / "log.txt").read_text()) == (run.seed == 2)
