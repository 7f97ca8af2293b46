"""Studies as tasks of Ray, on a simulated cluster of two machines."""

import signal
import sys

import pytest
import torch
from finished import figures, wait_until

from common.errors import UsageError
from common.start import ROOT
from experiments.studies import command, executor
from experiments.studies.executor import Cluster, LocalExecutor
from experiments.studies.progress import Progress
from experiments.studies.study_file import load

NO_RAY = "Ray is not installed: pip install -r requirements-cluster.txt"

pytestmark = pytest.mark.slow


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
def test_study_survives_the_loss_of_a_machine_with_identical_results(nodes, study_file, start, begin, tmp_path):
    """It is started in another folder than the project's, so that workers do not find the project by chance."""
    settings, other = {"seeds": [1, 2]}, nodes.add_node(num_cpus=1)
    on_ray, serial = (load(study_file(name, **settings)) for name in ("on_ray", "serial"))
    file = study_file("on_ray", **settings)
    arguments = [sys.executable, str(ROOT / "tools/study.py"), "run", str(file), "--address", nodes.address]
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
        logs = "".join(log.read_text() for log in run.folder.glob("log.txt*"))  # a resumed run has two
        assert logs.count("* accuracy:") == 1, "done twice"
    for one in on_ray.output.rglob("model*.pth.tar-2"):
        weights = [
            torch.load(file, weights_only=True)["state_dict"]
            for file in (one, serial.output / one.relative_to(on_ray.output))
        ]
        assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_study_exits_with_the_resume_message(nodes, study_file, start, number):
    study = load(study_file("stopped"))
    process = start(study_file("stopped"), "--address", nodes.address)
    wait_until(lambda: Progress(study).running, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (
        130,
        "Interrupted. Run the same command again to resume from the last complete epoch.",
    )
    assert Progress(study).failed == {}


def test_run_larger_than_any_machine_and_wrong_address_are_refused(nodes, monkeypatch):
    for cpus, gpus, words in ((2, None, "2 cores and 0 GPUs"), (1, 0.5, "1 cores and 0.5 GPUs")):
        with pytest.raises(UsageError, match=f"no machine of this cluster has {words}"):
            Cluster(nodes.address, cpus, gpus).__enter__()
    with pytest.raises(UsageError, match=r"^no Ray cluster at 127.0.0.1:1 \("):
        Cluster("127.0.0.1:1")
    monkeypatch.setattr("ray.init", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no port")))
    with pytest.raises(UsageError, match=r"^Ray does not start on this machine \(no port\)"):
        Cluster().__enter__()


def test_two_runs_may_share_a_gpu(nodes):
    other = nodes.add_node(num_cpus=4, num_gpus=1)
    for gpus, runs in ((0.5, 2), (None, 1)):
        with Cluster(nodes.address, gpus=gpus) as cluster:
            assert cluster.slots() == runs + 1  # one run is queued
    nodes.remove_node(other)


@pytest.mark.thorough
def test_without_ray_a_study_uses_local_processes_and_refuses_an_address(study_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # makes `import ray` fail
    used = []
    monkeypatch.setattr(executor, "execute_runs", lambda sequences, chosen, title: used.append(chosen) or {})
    file = str(study_file("local", datasets=["small_objects"]))
    command.main(["run", file])
    assert [type(executor) for executor in used] == [LocalExecutor]
    with pytest.raises(UsageError, match="pip install -r requirements-cluster.txt"):
        command.main(["run", file, "--address", "auto"])
    assert len(used) == 1
