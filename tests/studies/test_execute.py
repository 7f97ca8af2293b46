"""Runs in other processes and on machines: dying, locked, counted. tests/security/kills kills a study
at random moments.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from finished import figures, finish, wait_until
from marks import one_line
from PIL import Image

from common.errors import UsageError
from common.lock import LOCK
from common.start import ROOT
from inference import embed, predict, ray_workers, shard_files
from inference.tars import members_in
from studies import run as execution
from studies.plan import Run, load
from studies.progress import Progress
from studies.run import ERROR, TRIES, ClusterExecutor, LocalExecutor, execute_run, execute_runs

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
    ((Deadly.unlucky, other),) = study.sequences
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
        futures = [local.submit(trained) for trained, *_ in study.sequences]
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
    run = study.sequences[0][0]
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


def test_a_second_command_takes_the_runs_that_the_first_one_leaves(study_file, monkeypatch):
    study = load(study_file("shared", trainers={"ZeroshotCLIP": "small"}))
    ((first, second),) = study.sequences
    started = []

    def submit(self, run):
        started.append(run)
        future = Future()
        future.set_result(None)
        return future

    monkeypatch.setattr(LocalExecutor, "submit", submit)
    first.folder.mkdir(parents=True)
    with FileLock(first.folder / LOCK):
        assert execute_runs([(first,), (second,)], LocalExecutor(1), "shared") == {}
    assert started == [second, first]


def test_error_of_a_run_has_no_control_characters(tmp_path):
    line = execution.record_outcome(tmp_path, ValueError("bad \x1b[31m\nname"))
    assert (
        line == "ValueError: bad \\x1b[31m name" and (tmp_path / ERROR).read_text() == f"{line}\n"
    )


def test_run_without_a_test_has_failed(study_file, monkeypatch):
    """TEST.NO_TEST of a dataset in BY_DATASET: each start of the study trained it again."""
    monkeypatch.setattr(execution, "train_and_test", lambda *args, **options: None)
    run = load(study_file("untested")).runs()[0]
    assert "the run wrote no results: leave TEST.NO_TEST out" in execute_run(run.arguments)


def test_tests_are_repeated_when_prompts_are_learned_again(study_file, capsys):
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
    (first, _), (trained, test) = study.sequences
    for run in (first, test):  # the user has deleted a training run
        finish(run, 50.0)
    execute_runs(study.sequences, Submitted(1), "again")
    assert submitted[:2] == [trained, test] and len(submitted) == 3
    lines = [
        f"again: {number} of 4 runs: {run.folder}, accuracy 60.00%"
        for number, run in enumerate(submitted, 2)
    ]
    assert capsys.readouterr().out.splitlines() == lines  # of a log, where no bar moves


def test_progress_and_remaining_time(study_file):
    study = load(study_file("counted", seeds=[1, 2]))
    (base, new), (other, _), *_ = study.sequences
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


NO_RAY = "Ray is not installed: pip install -r requirements-cluster.txt"


@pytest.fixture(scope="module")
def nodes():
    """A cluster of one node with one core; a test that adds a node removes it."""
    pytest.importorskip("ray", reason=NO_RAY)
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Nodes()
        nodes.add_node(num_cpus=1, include_dashboard=False)
        yield nodes
        nodes.shutdown()


@pytest.mark.thorough
def test_study_survives_the_loss_of_a_machine_with_identical_results(
    nodes, study_file, start, begin, tmp_path
):
    """It is started in another folder than the project's, so that workers do not find the project
    by chance.
    """
    settings = {"seeds": [1, 2]}
    other = nodes.add_node(num_cpus=1)
    on_ray, serial = (load(study_file(name, **settings)) for name in ("on_ray", "serial"))
    file = study_file("on_ray", **settings)
    arguments = [
        sys.executable,
        str(ROOT / "tools/study.py"),
        "run",
        str(file),
        "--address",
        nodes.address,
    ]
    process = begin(arguments, cwd=tmp_path)
    wait_until(lambda: len(Progress(on_ray).running) == 2 and Progress(on_ray).done, process)
    done = {run: (run.folder / "results.json").stat().st_mtime_ns for run in Progress(on_ray).done}
    nodes.remove_node(other, allow_graceful=False)
    assert process.wait(timeout=300) == 0, process.communicate()
    for run, written in done.items():
        assert (run.folder / "results.json").stat().st_mtime_ns == written, "done again"
    process = start(study_file("serial", **settings), "--workers", "1")
    assert process.wait(timeout=300) == 0, process.communicate()
    assert figures(on_ray) == figures(serial)
    for run in on_ray.runs():
        # A resumed run has two
        logs = "".join(log.read_text() for log in run.folder.glob("log.txt*"))
        assert logs.count("* accuracy:") == 1, "done twice"
    for one in on_ray.output.rglob("model*.pth.tar-2"):
        weights = [
            torch.load(file, weights_only=True)["state_dict"]
            for file in (one, serial.output / one.relative_to(on_ray.output))
        ]
        assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_run_larger_than_any_machine_and_wrong_address_are_refused(monkeypatch):
    pytest.importorskip("ray", reason=NO_RAY)
    machines = [
        {"Alive": alive, "Resources": {"CPU": cores}}
        for alive, cores in ((True, 1.0), (False, 9.0))
    ]
    for name, answer in {
        "init": None,
        "shutdown": None,
        "nodes": machines,
        "cluster_resources": {"CPU": 1.0},
    }.items():
        monkeypatch.setattr(f"ray.{name}", lambda *_, answer=answer, **__: answer)
    with ClusterExecutor() as cluster:
        assert (cluster.slots(), cluster.gpus) == (2, 0)
    for cpus, gpus, words in ((2, None, "2 cores and 0 GPUs"), (1, 0.5, "1 cores and 0.5 GPUs")):
        with one_line(f"no machine of this cluster has {words}"):
            ClusterExecutor(None, cpus, gpus).__enter__()
    with pytest.raises(UsageError, match=r"^no Ray cluster at 127.0.0.1:1 \("):
        ClusterExecutor("127.0.0.1:1")
    monkeypatch.setattr(
        "ray.init", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no port"))
    )
    with pytest.raises(UsageError, match=r"^Ray does not start on this machine \(no port\)"):
        ClusterExecutor().__enter__()


@pytest.fixture
def tars(tmp_path):
    """Ten tars of 30 images."""
    rng = np.random.default_rng(0)
    for number in range(10):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for image in range(30):
                content = io.BytesIO()
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(content, "png")
                entry = tarfile.TarInfo(f"{image:03}.png")
                entry.size = content.tell()
                content.seek(0)
                archive.addfile(entry, content)
    return tmp_path / "{0..9}.tar"


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


def test_a_worker_writes_a_shard_as_the_command_does(command, tars, deep, tmp_path, monkeypatch):
    words = [str(tars), "--backbone", str(deep), "--to", str(tmp_path / "out")]
    command.works(embed, *words)
    expected = contents(tmp_path / "out")
    (tmp_path / "out/00004.parquet").unlink()
    (tmp_path / "out/.00004.parquet.1-2.partial").touch()
    writer = ray_workers.Writer(os.getcwd(), 1, "inference.embed", words)
    assert writer.write(4, shard_files.Shard([tmp_path / "4.tar"], members_in)) == (30, 0)
    assert writer.write(5, shard_files.Shard([tmp_path / "5.tar"], members_in)) == (30, 0)
    assert contents(tmp_path / "out") == expected
    done = command(predict, "--backbone", deep, tars, "--classes", "a", "b", "--engine", "ray")
    assert "--engine is for answers in a folder" in done.error
    monkeypatch.setattr("common.cluster.available", lambda: False)
    assert "Ray is not installed" in command(embed, *words, "--engine", "ray").error


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["embed", "predict"])
def test_a_killed_worker_leaves_the_files_of_one_process(
    name, command, begin, tars, deep, tmp_path, monkeypatch
):
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray", reason=NO_RAY)
    words = [str(tars), "--backbone", str(deep)]
    words += ["--classes", "a", "b"] if name == "predict" else []
    module = {"embed": embed, "predict": predict}[name]
    command.works(module, *words, "--to", f"{tmp_path}/whole/")
    tool = [sys.executable, str(ROOT / f"tools/{name}.py"), *words]
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not the cluster of other tests
    process = begin([*tool, "--engine", "ray", "--to", f"{tmp_path}/out/"], cwd=tmp_path)
    wait_until(lambda: (tmp_path / "out/00000.parquet").exists(), process)
    workers = psutil.Process(process.pid).children(recursive=True)
    own = [one for one in workers if "Writer" in " ".join(one.cmdline())]
    own[0].kill()
    assert process.wait(timeout=300) == 0, process.communicate()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "out")) == 10
