"""wandb as a tracker: what it gets, and that it costs no run."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from drawn import arguments, results

from common.start import ROOT
from runs import trackers

pytestmark = pytest.mark.slow
GIVEN = ["--report-to", "wandb"]


@pytest.fixture
def wandb(monkeypatch):
    """What wandb gets: `init`, `summary`, `files` and `finish`. A name in `failing` raises at that
    call.
    """
    got = SimpleNamespace(init={}, summary={}, files={}, finish=[], failing=set())

    def call(name, values):
        if name in got.failing:
            raise ConnectionError("no server")
        getattr(got, name).update(values)

    def finish(exit_code):
        got.finish.append(exit_code)
        if "finish" in got.failing:
            raise ConnectionError("no server")

    artefact = SimpleNamespace(add_file=lambda file, name: call("files", {name: file}))
    run = SimpleNamespace(
        id="1",
        summary=SimpleNamespace(update=lambda values: call("summary", values)),
        log_artifact=lambda artefact: None,
    )
    module = SimpleNamespace(
        init=lambda **options: call("init", options),
        finish=finish,
        run=run,
        Artifact=lambda name, type: artefact,
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(trackers, "find_spec", lambda name: SimpleNamespace(origin=name))
    return got


def test_wandb_gets_settings_and_files_and_tensorboard_is_written(wandb, run):
    folder = run("run", options=["--report-to", "wandb,tensorboard"])
    learned = "MultiModalPromptLearner/model.pth.tar-2"
    assert wandb.init["config"]["OPTIM.MAX_EPOCH"] == 2 and wandb.finish == [0]
    assert wandb.summary == {f"results/{key}": value for key, value in results(folder).items()}
    names = ("config.yaml", "results.json", learned)
    assert wandb.files == {name: str(folder / name) for name in names}
    assert list((folder / "tensorboard").glob("events.*"))


def test_a_failed_start_of_wandb_leaves_nothing_and_costs_no_results(
    wandb, refused, argv, run, launch, eurosat, tiny
):
    wandb.failing.add("init")
    refused(argv("MPL", options=GIVEN), "--report-to wandb: it cannot start (no server)")
    assert wandb.finish == [1]
    folder = run("done")
    before = (folder / "results.json").read_bytes()
    assert "no server" in launch(*arguments(eurosat, tiny, folder, options=GIVEN)).error
    assert (folder / "results.json").read_bytes() == before and (
        folder / "predictions.npz"
    ).exists()


def test_a_missing_package_of_wandb_ends_the_run_before_it_starts(
    wandb, refused, argv, monkeypatch
):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    refused(argv("MPL", options=GIVEN), "--report-to wandb: the package wandb is not installed")
    assert wandb.init == {}


@pytest.mark.parametrize("failing", ["summary", "files", "finish"])
def test_a_failure_of_wandb_at_the_end_does_not_cost_the_run(
    failing, wandb, argv, launch, tmp_path
):
    wandb.failing.add(failing)
    ended = launch.works(*argv("MPL", options=GIVEN))
    assert ended.errors == ["wandb has failed (no server): the run continues without it"]
    assert wandb.finish == [0] and results(tmp_path / "out")


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
