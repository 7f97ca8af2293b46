"""The files of a run, and resuming after a kill, an interrupt, a full disk or a diverged loss."""

import shutil
from datetime import datetime

import pytest
import torch
from drawn import arguments, results
from marks import times
from safetensors.torch import load_file

from common.errors import UsageError
from common.files import checksum
from common.lock import LOCK
from common.results import MEASURES
from common.start import ROOT
from common.version import source
from runs import run as run_module

pytestmark = pytest.mark.slow

LEARNED = "MultiModalPromptLearner"
BASE = "DATASET.SUBSAMPLE_CLASSES", "base"


# In this process


def test_results_have_the_promised_fields(run, eurosat, tiny, tmp_path):
    folder = run("out", *BASE)
    found = results(folder)
    figures = {key: found.pop(key) for key in (*MEASURES, "train_seconds", "test_seconds")}
    assert all(isinstance(figure, float) and figure >= 0 for figure in figures.values())
    assert figures["accuracy"] + figures["error_rate"] == pytest.approx(100)
    assert isinstance(found.pop("device"), str)
    assert datetime.fromisoformat(found.pop("date")).utcoffset() is not None
    assert found.pop("versions")["torch"] == torch.__version__
    assert {key: found.pop(key) for key in ("version", "commit", "dirty")} == source()
    card = found.pop("data_use")
    assert found == {
        "trainer": "MPL",
        "dataset": "EuroSAT",
        "seed": 1,
        "shots": 2,
        "classes": "base",
        "split": "test",
        "n_test": 12,
        "epochs": 2,
        "tested_epoch": 2,
        "backbone": str(tiny),
        "weights_sha256": checksum(tiny),
        "precision": "fp16"
        if torch.cuda.is_available()
        else "fp32",  # PREC is fp16, which a CPU lacks
    }
    assert (card["kind"], card["choose"]) == ("inductive", [])
    written = {
        "log.txt",
        "config.yaml",
        "results.json",
        "predictions.npz",
        "seen.npz",
        "tests.jsonl",
        "tensorboard",
        LEARNED,
    }
    assert {path.name for path in folder.iterdir()} == written | {LOCK}


def test_a_finished_run_is_left_alone_and_only_if_it_is_this_one(launch, eurosat, tiny, tmp_path):
    argv = arguments(eurosat, tiny, tmp_path / "run", options=["--skip-finished"])
    launch.works(*argv)
    before = times(tmp_path / "run")
    again = launch.works(*argv)
    assert again.printed == f"Already done (delete {tmp_path / 'run'} to run it again)\n"
    (tmp_path / "run/link").symlink_to(tmp_path)  # in which no run could start
    again = launch.works(
        *arguments(eurosat, tiny, tmp_path / "run", options=["--skip-finished", "--quiet"])
    )
    assert again.printed.startswith("MPL on EuroSAT 2 shots seed 1: ")
    (tmp_path / "run/link").unlink()
    before = times(tmp_path / "run")
    assert "OPTIM.MAX_EPOCH 2, this one has 3" in launch(*argv, "OPTIM.MAX_EPOCH", 3).error
    assert times(tmp_path / "run") == before
    for damaged in ("", '{"trainer": "MPL', "[]", "3"):
        (tmp_path / "run/results.json").write_text(damaged)
        assert launch(*argv).error.startswith(f"error: {tmp_path}/run/results.json is damaged")


def test_a_finished_test_counts_for_its_own_checkpoint_only(run, launch, eurosat, tiny, tmp_path):
    trained = run("trained", "TRAIN.CHECKPOINT_FREQ", 1)
    other = run("other", "SEED", 2)

    def test(folder, *epoch):
        options = ["--skip-finished", "--eval-only", "--model-dir", folder, *epoch]
        return launch(*arguments(eurosat, tiny, tmp_path / "test", options=options))

    assert test(trained, "--load-epoch", 1).status == 0
    assert results(tmp_path / "test")["checkpoint_sha256"] == checksum(
        trained / LEARNED / "model.pth.tar-1"
    )
    assert test(trained, "--load-epoch", 1).printed.startswith("Already done")
    holds = f"{tmp_path}/test holds a test of another checkpoint, of epoch 1, than"
    for folder in (trained, other):
        assert (
            f"{holds} {folder}/{LEARNED}/model.pth.tar-2: choose another --output-dir"
            in test(folder).error
        )
    shutil.rmtree(trained)
    assert test(trained, "--load-epoch", 1).printed.startswith("Already done")
    assert f"{holds} epoch 2: choose" in test(trained, "--load-epoch", 2).error


def test_a_finished_folder_of_a_yaml_file_is_done(launch, eurosat, tiny, tmp_path):
    (tmp_path / "own.yaml").write_text(
        f"_BASE_: {ROOT}/configs/datasets/eurosat.yaml\nOUTPUT_DIR: {tmp_path}/run\n"
    )
    argv = arguments(
        eurosat,
        tiny,
        "",
        options=["--skip-finished", "--dataset-config-file", tmp_path / "own.yaml"],
    )
    launch.works(*argv)
    assert launch(*argv).printed == f"Already done (delete {tmp_path}/run to run it again)\n"


def test_a_finished_read_only_folder_is_done(launch, eurosat, tiny, tmp_path, monkeypatch):
    argv = arguments(eurosat, tiny, tmp_path / "run", options=["--skip-finished"])
    launch.works(*argv)
    # Root may write to a read-only folder
    monkeypatch.setattr("runs.folder.locked", None)
    assert launch(*argv).printed.startswith("Already done")


def test_an_overflow_in_the_backbone_is_noticed(launch, eurosat, tiny, tmp_path):
    """Its features become zero, and the accuracy that of chance."""
    state = load_file(tiny)
    state["visual.proj"] = state["visual.proj"] * 1e30
    torch.save(state, tmp_path / "huge.pt")
    ended = launch(
        *arguments(eurosat, tmp_path / "huge.pt", tmp_path / "run", trainer="ZeroshotCLIP")
    )
    assert (
        "All classes are equally likely for every image" in ended.printed
        or "not finite" in ended.error
    )


def half(folder):
    """Make it the folder of a run that was stopped after its first epoch of two."""
    (folder / "results.json").unlink()
    (folder / LEARNED / "model.pth.tar-2").unlink()
    (folder / LEARNED / "checkpoint").write_text("model.pth.tar-1\n")


@pytest.fixture
def half_done(run, eurosat, tiny):
    """`argv, folder` of a run that was stopped after its first epoch of two."""
    folder = run("half", "TRAIN.CHECKPOINT_FREQ", 1)
    half(folder)
    return arguments(eurosat, tiny, folder), folder


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_does_not_go_on_under_other_settings(resumed, launch, half_done, tmp_path):
    argv, folder = half_done
    before = {path: time for path, time in times(folder).items() if path.name != LOCK}
    other = ["RESUME", folder, "OUTPUT_DIR", tmp_path / "new"] if resumed else []
    error = launch(*argv, "TRAINER.MPL.N_ADD_OP", 3, *other).error
    assert f"{folder} holds a run with TRAINER.MPL.N_ADD_OP 2, this one has 3: " in error
    assert (
        "resume it with its own settings" if resumed else "choose another --output-dir"
    ) in error
    assert {path: time for path, time in times(folder).items() if path.name != LOCK} == before
    assert not list(tmp_path.glob("new/config.yaml"))


def test_results_without_checkpoints_are_not_replaced_by_others(run, launch, eurosat, tiny):
    folder = run("zero", trainer="ZeroshotCLIP")
    before = times(folder)
    classes = "DATASET.SUBSAMPLE_CLASSES"
    error = launch(*arguments(eurosat, tiny, folder, classes, "base", trainer="ZeroshotCLIP")).error
    assert (
        f"{folder} holds a run with {classes} all, this one has base: choose another --output-dir"
        in error
    )
    assert times(folder) == before
    assert run("zero", trainer="ZeroshotCLIP") == folder  # again


def test_a_refused_start_deletes_no_results(launch, half_done):
    argv, folder = half_done
    launch(*argv)
    kept = {name: (folder / name).read_bytes() for name in ("results.json", "predictions.npz")}
    (folder / LEARNED / "model.pth.tar-2").write_bytes(b"half of")
    assert "model.pth.tar-2" in launch(*argv).error
    assert {name: (folder / name).read_bytes() for name in kept} == kept


def test_a_run_leaves_cudnn_as_it_was(launch, eurosat, tiny, tmp_path, monkeypatch):
    def build(spec):
        torch.backends.cudnn.benchmark = True
        raise UsageError("no model", "give one")

    monkeypatch.setattr(run_module, "build", build)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert "no model" in launch(*arguments(eurosat, tiny, tmp_path / "run")).error
    assert torch.backends.cudnn.benchmark is False
