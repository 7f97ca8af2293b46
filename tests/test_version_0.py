"""Checkpoints and result folders made before version 1.0.0 still count.

`version_0/run` was made by the last commit before it: CoOp, 2 epochs, base classes of SmallLand, 2 images a class.
"""

import json
import shutil
import sys

import pytest
import torch
import yaml

from common.start import ROOT
from experiments.session import cli_main
from experiments.studies.command import main as study_main

OLD = ROOT / "tests/version_0/run"


@pytest.fixture
def old(tmp_path):
    """A copy of the run."""
    shutil.copytree(OLD, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def arguments(drawn):
    def arguments(output, *options, classes="base"):
        argv = ["--root", drawn, "--seed", 1, "--trainer", "CoOp", "--output-dir", output, *options]
        argv += ["--dataset-config-file", ROOT / "configs/datasets/small_land.yaml"]
        argv += ["--config-file", ROOT / "configs/trainers/CoOp/small.yaml", "DATASET.NUM_SHOTS", 2]
        return [*argv, "OPTIM.MAX_EPOCH", 2, "DATASET.SUBSAMPLE_CLASSES", classes]

    return arguments


def accuracy(folder):
    return json.loads((folder / "results.json").read_text())["accuracy"]


def test_finished_run_is_taken_as_finished(old, launch, arguments):
    before = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    ended = launch(*arguments(old, "--skip-finished"))
    assert ended.status == 0 and ended.printed.startswith("Already done")
    assert {file: file.read_bytes() for file in old.rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_checkpoint_is_evaluated(old, launch, arguments, tmp_path):
    assert launch(*arguments(tmp_path / "again", "--eval-only", "--model-dir", old)).status == 0
    assert accuracy(tmp_path / "again") == pytest.approx(accuracy(old), abs=0.7)  # two of 320 images
    assert launch(*arguments(tmp_path / "new", "--eval-only", "--model-dir", old, classes="new")).status == 0
    assert json.loads((tmp_path / "new/results.json").read_text())["train_seconds"] is None


@pytest.mark.slow
def test_run_is_resumed(old, launch, arguments):
    prompts = torch.load(old / "prompt_learner/model.pth.tar-2", weights_only=True)["state_dict"]["ctx"]
    for name in ("results.json", "prompt_learner/model.pth.tar-2"):
        (old / name).unlink()
    (old / "prompt_learner/checkpoint").write_text("model.pth.tar-1\n")
    ended = launch(*arguments(old))
    assert ended.status == 0 and "Previous epoch: 1" in ended.printed
    checkpoint = torch.load(old / "prompt_learner/model.pth.tar-2", weights_only=True)
    assert checkpoint["metadata"]["method"] == "CoOp"
    assert (checkpoint["state_dict"]["ctx"] - prompts).abs().max() < 1e-4


def test_study_counts_it_as_done(drawn, ended, monkeypatch, tmp_path):
    study = {
        "trainers": {"CoOp": {"config": "small", "overrides": {"OPTIM.MAX_EPOCH": 2}}},
        "datasets": ["small_land"],
        "seeds": [1],
        "shots": 2,
        "root": str(drawn),
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    shutil.copytree(OLD, tmp_path / "out/base2new/train_base/small_land/shots_2/CoOp/CoOp/seed1")
    monkeypatch.setattr(sys, "argv", ["study", "status", str(tmp_path / "study.yaml")])
    assert "1 of 2 runs" in ended(lambda: cli_main(study_main)).printed
