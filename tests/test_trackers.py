"""Experiment trackers: what they get, and that none of them costs a run."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from drawn import arguments, results

from common.start import ROOT
from runs import trackers

pytestmark = pytest.mark.slow


@pytest.fixture
def recorded(monkeypatch):
    """What two trackers get: a list of calls. A name in `failing` raises at that call."""
    calls = SimpleNamespace(made=[], failing=set())

    def tracker(name):
        def call(which, *arguments):
            calls.made.append((name, which, *arguments))
            if f"{name} {which}" in calls.failing:
                raise ConnectionError("no server")

        return lambda: SimpleNamespace(
            start=lambda cfg: call("start", cfg), finish=lambda *ended: call("finish", *ended)
        )

    for name in ("wandb", "other"):
        monkeypatch.setitem(trackers.TRACKERS, name, tracker(name))
    monkeypatch.setattr("runs.arguments.TRACKERS", ("tensorboard", "wandb", "other"))
    monkeypatch.setattr(trackers, "find_spec", lambda name: SimpleNamespace(origin=name))
    return calls


def test_tracker_gets_settings_and_files_and_tensorboard_is_written(recorded, run):
    folder = run("run", options=["--report-to", "wandb,tensorboard"])
    (_, _, cfg), (_, _, found, files) = recorded.made
    learned = "MultiModalPromptLearner"
    assert cfg.OPTIM.MAX_EPOCH == 2 and found == results(folder)
    inside = {"config.yaml": "", "results.json": "", f"{learned}/model.pth.tar-2": learned}
    assert files == {folder / name: place for name, place in inside.items()}
    assert list((folder / "tensorboard").glob("events.*"))


def test_tracker_that_cannot_start_leaves_nothing_and_costs_no_results(
    recorded, refused, argv, run, launch, eurosat, tiny
):
    recorded.failing.add("other start")
    given = ["--report-to", "wandb,other"]
    refused(argv("MPL", options=given), "--report-to other: it cannot start (no server)")
    ended = [call[:3] for call in recorded.made if call[1] == "finish"]
    assert ended == [("wandb", "finish", None), ("other", "finish", None)]
    folder = run("done")
    before = (folder / "results.json").read_bytes()
    assert "no server" in launch(*arguments(eurosat, tiny, folder, options=given)).error
    assert (folder / "results.json").read_bytes() == before and (
        folder / "predictions.npz"
    ).exists()


def test_a_tracker_whose_package_is_missing_ends_the_run_before_it_starts(
    recorded, refused, argv, monkeypatch
):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    line = argv("MPL", options=["--report-to", "wandb"])
    refused(line, "--report-to wandb: the package wandb is not installed")
    assert recorded.made == []


def test_tracker_that_fails_at_the_end_costs_neither_the_run_nor_other_trackers(
    recorded, argv, launch, tmp_path
):
    recorded.failing.add("other finish")
    ended = launch.works(*argv("MPL", options=["--report-to", "other,wandb"]))
    assert ended.errors == ["other has failed (no server): the run continues without it"]
    assert ("wandb", "finish", results(tmp_path / "out")) in [call[:3] for call in recorded.made]


@pytest.fixture
def offline(eurosat, tiny, tmp_path):
    """`offline(name, **variables)`: two seeds in a process that reports to a tracker; returns their
    results.
    """

    def offline(name, **variables):
        argv = arguments(
            eurosat, tiny, tmp_path / "{seed}", options=["--report-to", name, "--seed", "1", "2"]
        )
        env = (
            os.environ
            | {"OMP_NUM_THREADS": "1"}
            | {key: str(value) for key, value in variables.items()}
        )
        command = [sys.executable, str(ROOT / "train.py"), *argv]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return {seed: results(tmp_path / seed) for seed in "12"}

    return offline


@pytest.mark.thorough
def test_wandb_offline_has_the_results_and_the_losses(offline, tmp_path):
    pytest.importorskip("wandb", reason="not installed: requirements-trackers.txt")
    for seed in offline("wandb", WANDB_MODE="offline"):
        (file,) = (tmp_path / seed).glob("wandb/offline-run-*/*.wandb")
        content = file.read_bytes()
        for name in (b"results/accuracy", b"results/train_seconds", b"train/loss"):
            assert name in content
