"""Studies and shards as tasks of Ray, on a simulated cluster of two machines."""

import io
import os
import sys
import tarfile

import numpy as np
import pytest
import torch
from finished import figures, wait_until
from marks import one_line
from PIL import Image

from common.errors import UsageError
from common.start import ROOT
from inference import embed, engine, outputs, predict
from inference.tars import members_in
from studies.executor import ClusterExecutor
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
    writer = engine.Writer(os.getcwd(), 1, "inference.embed", words)
    assert writer.write(4, outputs.Shard([tmp_path / "4.tar"], members_in)) == (30, 0)
    assert writer.write(5, outputs.Shard([tmp_path / "5.tar"], members_in)) == (30, 0)
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
