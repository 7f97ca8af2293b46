"""Studies as tasks of Ray, on two machines that are two nodes of this one."""

import signal
import sys

import pytest
import torch
from finished import figures, wait_until

from common.errors import UsageError
from experiments.studies import cluster
from experiments.studies.cluster import Cluster
from experiments.studies.progress import Progress
from experiments.studies.study_file import load

NO_RAY = "Ray is not installed: pip install -r requirements-cluster.txt"


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of two machines with a core each."""
    pytest.importorskip("ray", reason=NO_RAY)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes()
    nodes.add_node(num_cpus=1, include_dashboard=False)
    nodes.other = nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


def test_a_study_outlives_one_of_two_machines_and_equals_a_serial_one(nodes, study_file, start):
    settings = {"seeds": [1, 2]}
    on_ray, serial = (load(study_file(name, **settings)) for name in ("on_ray", "serial"))
    process = start(study_file("on_ray", **settings), "--address", nodes.address)
    wait_until(lambda: len(Progress.read(on_ray).running) == 2 and Progress.read(on_ray).done, process)
    done = {run: (run.folder / "results.json").stat().st_mtime_ns for run in Progress.read(on_ray).done}
    nodes.remove_node(nodes.other, allow_graceful=False)
    assert process.wait(timeout=300) == 0, process.communicate()
    for run, written in done.items():
        assert (run.folder / "results.json").stat().st_mtime_ns == written, "done again"
    process = start(study_file("serial", **settings), "--workers", "1")
    assert process.wait(timeout=300) == 0, process.communicate()
    assert figures(on_ray) == figures(serial)
    for run in on_ray.runs():
        logs = "".join(log.read_text() for log in run.folder.glob("log.txt*"))  # one that went on has two
        assert logs.count("* accuracy:") == 1, "done twice"
    for one in on_ray.output.rglob("model*.pth.tar-2"):
        weights = [
            torch.load(file, weights_only=True)["state_dict"]
            for file in (one, serial.output / one.relative_to(on_ray.output))
        ]
        assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_stopped_says_how_it_goes_on(nodes, study_file, start, number):
    study = load(study_file("stopped"))
    process = start(study_file("stopped"), "--address", nodes.address)
    wait_until(lambda: Progress.read(study).running, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (
        130,
        "Interrupted: the same command goes on from the last whole epoch",
    )
    assert Progress.read(study).failed == {}


def test_sigterm_while_ray_starts_ends_a_study_too(monkeypatch):
    ray = pytest.importorskip("ray", reason=NO_RAY)

    def init(*args, **settings):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray's own begins
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as cli_main has it: KeyboardInterrupt
    try:
        with pytest.raises(KeyboardInterrupt):
            Cluster().__enter__()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_that_no_machine_has_room_for_is_refused(nodes):
    with (
        pytest.raises(UsageError, match="no machine of this cluster has 2 cores and 0 GPUs"),
        Cluster(nodes.address, 2),
    ):
        pass
    with pytest.raises(UsageError, match="has 1 cores and 0.5 GPUs"), Cluster(nodes.address, 1, 0.5):
        pass


def test_two_runs_may_share_a_gpu(nodes):
    nodes.add_node(num_cpus=4, num_gpus=1)
    for gpus, runs in ((0.5, 2), (None, 1)):
        with Cluster(nodes.address, gpus=gpus) as cluster:
            assert cluster.slots() == runs + 1  # which waits


def test_no_cluster_at_the_address_is_one_line(study_file, start):
    pytest.importorskip("ray", reason=NO_RAY)
    process = start(study_file("nowhere"), "--address", "127.0.0.1:1")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and errors.strip().splitlines()[-1].startswith(
        "error: no Ray cluster at 127.0.0.1:1"
    )


def test_without_ray_an_address_is_refused_and_a_study_goes_on(study_file, monkeypatch, ended):
    monkeypatch.setattr(cluster, "available", lambda: False)
    with pytest.raises(UsageError, match="pip install -r requirements-cluster.txt"):
        Cluster("auto")
