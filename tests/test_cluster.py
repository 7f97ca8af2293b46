"""Studies as tasks of Ray, on a simulated cluster of two machines."""

import sys

import pytest
import torch
from finished import figures, wait_until

from common.errors import UsageError
from common.start import ROOT
from studies.executor import Cluster
from studies.progress import Progress
from studies.study_file import load

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
    with Cluster() as cluster:
        assert (cluster.slots(), cluster.gpus) == (2, 0)
    for cpus, gpus, words in ((2, None, "2 cores and 0 GPUs"), (1, 0.5, "1 cores and 0.5 GPUs")):
        with pytest.raises(UsageError, match=f"no machine of this cluster has {words}"):
            Cluster(None, cpus, gpus).__enter__()
    with pytest.raises(UsageError, match=r"^no Ray cluster at 127.0.0.1:1 \("):
        Cluster("127.0.0.1:1")
    monkeypatch.setattr(
        "ray.init", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no port"))
    )
    with pytest.raises(UsageError, match=r"^Ray does not start on this machine \(no port\)"):
        Cluster().__enter__()
