"""Runs in other processes: killed, locked, counted; the study goes on and ends as if nothing had been."""

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock
from finished import figures, finish, members, wait_until

from experiments.studies.command import load
from experiments.studies.executor import ERROR, LOCK, Processes, execute, prepare, work
from experiments.studies.progress import Progress


def test_a_study_killed_at_random_moments_ends_with_the_same_figures(study_file, start):
    """KILLS=10 takes some minutes."""
    kills = int(os.environ.get("KILLS", 2))
    seeds = list(range(1, 1 + kills))  # so that there is something left at each
    file = study_file("killed", seeds=seeds)
    through, killed = load(study_file("through", seeds=seeds)), load(file)
    prepare(through)
    assert execute(through.chains(), Processes(2), "through") == {}
    chance = random.Random(time.time_ns())
    for _ in range(kills):
        process = start(file, "--workers", "2")
        wait_until(lambda: Progress(killed).running, process)
        time.sleep(chance.uniform(0, 3))
        process.kill()  # the main process alone
        process.communicate()
        deadline = time.time() + 20
        while members(process.pid):
            assert time.time() < deadline, "its processes outlive it"
            time.sleep(0.1)
    process = start(file, "--workers", "2")
    assert process.wait(timeout=300) == 0, process.communicate()
    assert figures(killed) == figures(through)
    progress = Progress(killed)
    assert (len(progress.done), progress.open) == (4 * kills, 0)


def test_a_process_that_dies_costs_a_run_and_no_other(study_file):
    """That of one run is killed each time, as by a full memory."""
    study = load(study_file("deaths", trainers={"ZeroshotCLIP": "small"}))
    ((unlucky, other),) = study.chains()
    begun = []

    class Deadly(Processes):
        def submit(self, run):
            begun.append(run)
            future = super().submit(run)
            if run == unlucky:
                (process,) = self.busy[future]._processes.values()
                process.kill()
            return future

    failed = execute([(unlucky,), (other,)], Deadly(2), "deaths")
    assert (list(failed), sorted(map(str, begun))) == ([unlucky], sorted(map(str, [unlucky] * 3 + [other])))
    progress = Progress(study)
    assert "terminated abruptly" in failed[unlucky] and progress.failed == failed
    assert list(progress.done) == [other]
    assert execute([(unlucky,)], Processes(1), "again") == {} and Progress(study).failed == {}


def test_a_run_that_goes_on_elsewhere_is_waited_for(study_file):
    study = load(study_file("locked", trainers={"ZeroshotCLIP": "small"}))
    run = study.chains()[0][0]
    run.folder.mkdir(parents=True)
    with ThreadPoolExecutor(1) as other:
        with FileLock(run.folder / LOCK):
            waiting = other.submit(work, run.arguments)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=2)
            assert Progress(study).running == [run]
            assert [path.name for path in run.folder.iterdir()] == [LOCK]
        assert waiting.result(timeout=120) is None
    progress = Progress(study)
    assert (list(progress.done), progress.running) == ([run], [])
    before = (run.folder / "results.json").stat().st_mtime_ns
    assert work(run.arguments) is None  # by whoever waited longest
    assert (run.folder / "results.json").stat().st_mtime_ns == before


def test_what_a_study_has_come_to_and_how_long_the_rest_will_take(study_file):
    study = load(study_file("counted", seeds=[1, 2]))
    (base, new), (other, _), *_ = study.chains()
    assert str(Progress(study)) == "0 of 8 runs are done, 0 are running, 0 have failed, 8 are left"
    for run, seconds in ((base, 100), (other, 40)):
        finish(run, 50.0)
        (run.folder / "config.yaml").write_text("{}")
        written = (run.folder / "results.json").stat().st_mtime
        os.utime(run.folder / "config.yaml", (written - seconds, written - seconds))
    new.folder.mkdir(parents=True)
    (new.folder / ERROR).write_text("OSError: no space left\n")
    progress = Progress(study)
    assert progress.failed == {new: "OSError: no space left"}
    # CoOp's second training is like its first, MPL's like MPL's; of tests there is no example.
    assert progress.seconds_left == pytest.approx(100 + 40 + 3 * 70)
    assert "about 05:50 to go (one at a time; none is running)" in str(progress)
