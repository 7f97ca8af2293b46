"""Checkpoints and result folders made before version 1.0.0 still count.

`version_0/run` was made by the last commit before it: CoOp, 2 epochs, base classes of SmallLand, 2 images a class.
"""

import shutil

import pytest
import torch
from drawn import results

from common.start import ROOT
from experiments.studies import command as study
from inference.classifier import PromptedClassifier

pytestmark = pytest.mark.slow

OLD = ROOT / "tests/version_0/run"


@pytest.fixture
def old(tmp_path):
    """A copy of the run."""
    shutil.copytree(OLD, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def command_line(drawn):
    def command_line(output, *options, classes="base"):
        dataset = ["--dataset-config-file", ROOT / "configs/datasets/small_land.yaml"]
        argv = ["--root", drawn, "--seed", 1, "--trainer", "CoOp", "--output-dir", output, *options, *dataset]
        argv += ["--config-file", ROOT / "configs/trainers/CoOp/small.yaml", "DATASET.NUM_SHOTS", 2]
        return [*argv, "OPTIM.MAX_EPOCH", 2, "DATASET.SUBSAMPLE_CLASSES", classes]

    return command_line


def test_finished_run_is_taken_as_finished(old, launch, command_line):
    before = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    ended = launch(*command_line(old, "--skip-finished"))
    assert ended.status == 0 and ended.printed.startswith("Already done")
    assert {file: file.read_bytes() for file in old.rglob("*") if file.is_file()} == before


def test_checkpoint_is_evaluated(old, launch, command_line, tmp_path):
    for classes in ("base", "new"):
        evaluation = command_line(tmp_path / classes, "--eval-only", "--model-dir", old, classes=classes)
        assert launch(*evaluation).status == 0
    same = pytest.approx(results(old)["accuracy"], abs=0.7)  # two of 320 images
    assert results(tmp_path / "base")["accuracy"] == same and results(tmp_path / "new")["train_seconds"] is None


def test_run_is_resumed(old, launch, command_line):
    prompts = torch.load(old / "prompt_learner/model.pth.tar-2", weights_only=True)["state_dict"]["ctx"]
    for name in ("results.json", "prompt_learner/model.pth.tar-2"):
        (old / name).unlink()
    (old / "prompt_learner/checkpoint").write_text("model.pth.tar-1\n")
    ended = launch(*command_line(old))
    assert ended.status == 0 and "Previous epoch: 1" in ended.printed
    checkpoint = torch.load(old / "prompt_learner/model.pth.tar-2", weights_only=True)
    assert checkpoint["metadata"]["method"] == "CoOp"
    assert (checkpoint["state_dict"]["ctx"] - prompts).abs().max() < 1e-4


def test_study_counts_it_as_done(study_file, command, tmp_path):
    file = study_file("out", trainers={"CoOp": {"config": "small", "overrides": {"OPTIM.MAX_EPOCH": 2}}}, shots=2)
    shutil.copytree(OLD, tmp_path / "out/base2new/train_base/small_land/shots_2/CoOp/CoOp/seed1")
    assert "1 of 2 runs" in command(study, "status", file).printed


def test_the_former_place_of_the_classifier_says_where_it_is_now():
    with pytest.warns(DeprecationWarning, match="is now inference.classifier") as warned:
        from trainers.classifier import PromptedClassifier as former
    assert former is PromptedClassifier and warned[0].filename == __file__
