"""Learned prompts are used with the weights and the classes that they were learned on, or refused in one line."""

import pytest
import torch

from clip.random_weights import random_tensor
from common.errors import UsageError
from common.start import ROOT

EUROSAT = ["--dataset-config-file", ROOT / "configs/datasets/eurosat.yaml"]
FEW = ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2]


@pytest.fixture
def backbone(tiny, tmp_path):
    """A file that a test may replace by one with other weights."""
    (tmp_path / "clip.pt").write_bytes(tiny.read_bytes())
    return tmp_path / "clip.pt"


def other_weights(file):
    state = torch.load(file, weights_only=True)
    state = {key: value + 0.01 * random_tensor(f"other {key}", value.shape) for key, value in state.items()}
    torch.save(state, file)


@pytest.fixture
def train(launch, eurosat, backbone, tmp_path):
    """`train(folder, classes, *options)` runs train.py with CoOp."""

    def train(folder, classes="base", *options, overrides=()):
        argv = ["--root", eurosat, "--backbone", backbone, "--output-dir", tmp_path / folder, "--seed", 1, *EUROSAT]
        argv += ["--trainer", "CoOp", "--config-file", ROOT / "configs/trainers/CoOp/small.yaml", *options]
        return launch(*argv, "DATASET.SUBSAMPLE_CLASSES", classes, *FEW, *overrides)

    return train


@pytest.mark.slow
def test_an_evaluation_refuses_other_weights_under_the_same_name(train, backbone, tmp_path):
    assert train("a").status == 0
    same = train("again", "base", "--eval-only", "--model-dir", tmp_path / "a")
    assert same.status == 0 and "on which weights" not in same.printed
    other_weights(backbone)
    ended = train("b", "base", "--eval-only", "--model-dir", tmp_path / "a")
    (line,) = ended.errors
    assert ended.status == 2 and "has prompts for other weights: SHA-256" in line and "--backbone" in line


@pytest.mark.slow
def test_a_resumed_run_refuses_other_weights(train, backbone, tmp_path):
    assert train("a").status == 0
    other_weights(backbone)
    ended = train("b", "base", "--resume", tmp_path / "a")
    assert ended.status == 2 and "the run to resume has prompts for other weights" in ended.errors[0]


@pytest.mark.slow
def test_class_specific_contexts_never_meet_other_classes(train, tmp_path):
    csc = ("TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "")
    assert train("a", "base", overrides=csc).status == 0
    assert train("same", "base", "--eval-only", "--model-dir", tmp_path / "a", overrides=csc).status == 0
    ended = train("new", "new", "--eval-only", "--model-dir", tmp_path / "a", overrides=csc)
    assert ended.status == 2 and "ctx with values for each class that it was learned on" in ended.errors[0]
    assert not (tmp_path / "new/results.json").exists()


@pytest.mark.parametrize("names", [["a", "b", "c", "d", "e", "f"], ["a", "b"]], ids=["as many", "fewer"])
def test_a_tensor_of_the_classes_is_known_by_its_shape(names, build):
    trainer = build("CoOp", "all", "CSC", True)
    assert trainer.tensors_of_classes() == ["ctx"] and build("CoOp").tensors_of_classes() == []
    checkpoint = {"state_dict": trainer.saved_module().state_dict(), "epoch": 1}
    trainer.load_prompts(checkpoint | {"metadata": {"class_names": trainer.class_names}}, "a file")
    with pytest.raises(UsageError, match="ctx with values for each class that it was learned on: test it on these"):
        trainer.load_prompts(checkpoint | {"metadata": {"class_names": names}}, "a file")


def test_a_published_checkpoint_of_class_specific_contexts_is_refused_on_new_classes(build):
    trainer = build("CoOp", "new", "CSC", True)
    checkpoint = {"state_dict": trainer.saved_module().state_dict(), "epoch": 1}
    with pytest.raises(UsageError, match="ctx with values for each class"):
        trainer.load_prompts(checkpoint, "a file")


def test_finding_such_tensors_draws_no_random_numbers_of_the_run(build):
    trainer = build("CoOp", "all", "CSC", True)
    before = torch.get_rng_state()
    trainer.tensors_of_classes()
    assert torch.equal(before, torch.get_rng_state())


def test_metadata_has_the_sha256_of_the_backbone(build):
    assert len(build("CoOp").checkpoint_metadata()["weights_sha256"]) == 64
