"""`--report-to`: what trackers get is what results.json has. wandb and MLflow run offline, where they are installed."""

import json
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest
from drawn import arguments, results

from common.start import ROOT
from experiments import trackers

pytestmark = pytest.mark.slow


@pytest.fixture
def recorded(monkeypatch):
    """wandb is replaced by a list of what it gets."""
    calls = []
    made = SimpleNamespace(
        describe=lambda cfg: calls.append(("cfg", cfg)),
        add_scalar=lambda *scalar: calls.append(scalar),
        finish=lambda *ended: calls.append(("finish", *ended)),
    )
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda cfg: made)
    monkeypatch.setattr(trackers, "find_spec", lambda name: SimpleNamespace(origin=name))
    return calls


def test_tracker_gets_metrics_settings_and_files(recorded, run):
    folder = run("run", options=["--report-to", "wandb,tensorboard"])
    (_, cfg), *scalars, (_, found, files) = recorded
    learned = "MultiModalPromptLearner"
    assert cfg.OPTIM.MAX_EPOCH == 2 and found == results(folder)
    inside = {"config.yaml": "", "results.json": "", f"{learned}/model.pth.tar-2": learned}
    assert files == {folder / name: place for name, place in inside.items()}
    steps = [step for tag, _, step in scalars if tag == "train/loss"]
    assert steps == list(range(len(steps))) and len(steps) >= 2
    assert ("test/accuracy", found["accuracy"], 1) in scalars
    assert list((folder / "tensorboard").glob("events.*"))


def test_tracker_that_cannot_start_costs_no_results(launch, run, eurosat, tiny, monkeypatch):
    folder = run("run")
    before = (folder / "results.json").read_bytes()

    def wandb(cfg):
        raise OSError("no API key")

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", wandb)
    ended = launch(*arguments(eurosat, tiny, folder, options=["--report-to", "tensorboard"]))
    assert "no API key" in ended.error
    assert (folder / "results.json").read_bytes() == before and (folder / "predictions.npz").exists()


def test_tracker_that_cannot_start_leaves_nothing(refused, argv, monkeypatch):
    def wandb(cfg):
        raise OSError("no API key")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", wandb)
    refused(argv("MPL", options=["--report-to", "tensorboard,wandb"]), "no API key")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_tracker_that_fails_after_its_run_has_begun_ends_that_run(name, refused, argv, monkeypatch):
    ended = []

    def fail(*arguments, **options):
        raise ConnectionError("no server")

    def end(*arguments, **options):
        ended.append((arguments, options))
        fail()

    begun = SimpleNamespace(define_metric=fail, finish=end, info=SimpleNamespace(run_id="1"))
    client = SimpleNamespace(log_batch=fail, set_terminated=end, create_run=lambda *names, **options: begun)
    client.get_experiment_by_name = lambda name: SimpleNamespace(experiment_id="2")
    modules = {"wandb": {"init": lambda **options: begun}, "mlflow": {"MlflowClient": lambda: client}}
    modules["mlflow.entities"] = {"Param": lambda *pair: pair}
    for module, content in modules.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**content))
    monkeypatch.setattr(trackers, "find_spec", lambda name: SimpleNamespace(origin=name))
    refused(argv("MPL", options=["--report-to", name]), f"--report-to {name}: it cannot start (no server)")
    assert ended == [{"wandb": ((), {"exit_code": 1}), "mlflow": (("1", "FAILED"), {})}[name]]


def test_a_tracker_that_fails_costs_neither_the_run_nor_other_trackers(
    recorded, launch, eurosat, tiny, monkeypatch, tmp_path
):
    def fail(*arguments):
        raise ConnectionError("no server")

    failing = SimpleNamespace(describe=lambda cfg: None, add_scalar=fail, finish=fail)
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", lambda cfg: failing)
    ended = launch(*arguments(eurosat, tiny, tmp_path / "run", options=["--report-to", "mlflow,wandb"]))
    assert ended.status == 0 and ended.errors == ["mlflow has failed (no server): the run continues without it"]
    assert recorded[-1][:2] == ("finish", results(tmp_path / "run"))
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", fail)
    error = launch(*arguments(eurosat, tiny, tmp_path / "other", options=["--report-to", "wandb,mlflow"])).error
    assert error.startswith("error: --report-to mlflow: it cannot start (no server)")
    assert recorded[-1][:2] == ("finish", None)


def test_failed_run_has_no_results(recorded, launch, eurosat, tiny, tmp_path):
    rates = ("OPTIM.LR", 1000.0, "OPTIM.WEIGHT_DECAY", 1000.0)
    error = launch(*arguments(eurosat, tiny, tmp_path / "run", *rates, options=["--report-to", "wandb"])).error
    assert error.startswith("error: the loss is ") and not (tmp_path / "run/results.json").exists()
    assert recorded[-1][:2] == ("finish", None)
    assert not list((tmp_path / "run/tensorboard").glob("events.*"))


def test_unknown_tracker_and_missing_package(launch, refused, eurosat, tiny, tmp_path, monkeypatch):
    for given, unknown in (("wandb,comet", "comet"), ("", "")):
        ended = launch(*arguments(eurosat, tiny, tmp_path / "out", options=["--report-to", given]))
        assert ended.status == 2
        assert f"there is no tracker {unknown!r}: give some of tensorboard,wandb,mlflow" in ended.errors[-1]
    argv = arguments(eurosat, tiny, tmp_path / "out", options=["--report-to", "mlflow"])
    for found in (None, SimpleNamespace(origin=None)):  # the second: a folder of that name
        monkeypatch.setattr(trackers, "find_spec", lambda name, found=found: found)
        refused(argv, "the package mlflow is not installed", "pip install -r requirements-trackers.txt")


@pytest.mark.thorough
def test_trackers_are_not_imported_unless_asked_for():
    """Also not by timm, a package of open_clip, which does so in a process of its own."""
    code = "import sys, experiments.run; print([name for name in ('wandb', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def offline(name, eurosat, tiny, tmp_path, **variables):
    """A run in a process of its own that reports to a tracker; returns its folder and results."""
    argv = arguments(eurosat, tiny, tmp_path / "run", options=["--report-to", name])
    env = os.environ | {"OMP_NUM_THREADS": "1"} | {key: str(value) for key, value in variables.items()}
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tmp_path / "run", results(tmp_path / "run")


@pytest.mark.thorough
def test_mlflow_holds_the_numbers_of_results_json(eurosat, tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="not installed: requirements-trackers.txt")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)  # where its artefacts are
    folder, found = offline("mlflow", eurosat, tiny, tmp_path, MLFLOW_TRACKING_URI=uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["results/accuracy"] == found["accuracy"] == run.data.metrics["test/accuracy"]
    assert run.data.metrics["results/train_seconds"] == found["train_seconds"]
    assert run.data.params["OPTIM.MAX_EPOCH"] == "2"
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) >= 2
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "results.json", "MultiModalPromptLearner"} <= names


def wandb_records(content):
    """The records of a .wandb file, in the log format of LevelDB: blocks of 32 KiB with parts."""
    at, record = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield record
            record = b""


@pytest.mark.thorough
def test_wandb_offline_holds_the_numbers_of_results_json(eurosat, tiny, tmp_path):
    pytest.importorskip("wandb", reason="not installed: requirements-trackers.txt")
    from wandb.proto import wandb_internal_pb2

    folder, found = offline("wandb", eurosat, tiny, tmp_path, WANDB_MODE="offline")
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    summary, losses = {}, 0
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        losses += any((item.key or "/".join(item.nested_key)) == "train/loss" for item in record.history.item)
    assert summary["results/accuracy"] == found["accuracy"]
    assert summary["results/train_seconds"] == found["train_seconds"]
    assert losses >= 2
