"""Pre-training of the small CLIP: its data, resuming, and errors."""

import json

import numpy as np
import pytest
import torch

from clip import weights
from datasets.small_world import SmallSource
from datasets.small_world.drawing import Subject
from experiments.session import cli_main
from experiments.small_clip import pairs, pretraining

pytestmark = pytest.mark.slow


def test_pretraining_data_has_nothing_held_out():
    rng = np.random.default_rng(0)
    subjects = [pairs.sample_subject(rng) for _ in range(3000)]
    words = {word for subject in subjects for word in subject.words.split()}
    assert words.isdisjoint({"turquoise", "crescent", "crescents", "zigzag"})
    assert {"red", "striped", "triangle", "three", "forest", "river"} <= words
    assert not any(pairs.held_out(s.colour, s.texture, s.shape) for s in subjects if s.shape)
    assert any(pairs.held_out(s.colour, s.texture, s.shape) for s in SmallSource.subjects)


def test_captions_describe_the_image_partly_or_fully():
    rng = np.random.default_rng(0)
    captions = [pairs.caption(Subject("red", "striped", "triangle"), rng) for _ in range(200)]
    assert all("triangle" in caption for caption in captions)
    assert 0 < sum("red striped" in caption for caption in captions) < 200
    assert len(set(captions)) > 40


@pytest.fixture
def pretrain(tmp_path, monkeypatch, ended):
    """`pretrain(folder, *options)`: four steps of a model of one layer in `tmp_path/folder`, and an `Ended`."""
    monkeypatch.setattr(pretraining, "LAYERS", 1)
    monkeypatch.setattr(pretraining, "UNSEEN", 50)
    few = ["--images", 24, "--batch", 8, "--every", 3, "--steps", 4]

    def pretrain(folder: str, *options):
        argv = [str(option) for option in (*few, "--output", tmp_path / folder, *options)]
        return ended(lambda: cli_main(lambda: pretraining.main(argv)))

    return pretrain


def test_resumed_pretraining_is_bit_identical(pretrain, tmp_path, monkeypatch):
    def stop_at_the_end(model, *args, retrieval=pretraining.retrieval):
        if (tmp_path / "parts/checkpoint.pt").exists():
            raise KeyboardInterrupt
        return retrieval(model, *args)

    assert pretrain("whole").status == 0
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "retrieval", stop_at_the_end)
        assert pretrain("parts").status == 130
    assert not (tmp_path / "parts/small.safetensors").exists()
    assert pretrain("parts").status == 0
    whole, parts = (weights.read_state_dict(tmp_path / name / "small.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "parts")]
    for history in histories:
        assert [row["step"] for row in history] == [3, 4]
        assert 1 < history[1]["loss"] < 4  # of the last step alone: ln 8 is chance
    assert [row["loss"] for row in histories[0]] == [row["loss"] for row in histories[1]]
    assert (tmp_path / "parts/curves.png").stat().st_size > 1000


def test_other_settings_and_damaged_files_are_refused(pretrain, tmp_path):
    def refused(*options):
        status, _, (error,) = pretrain("run", *options)
        assert (status, error[:7]) == (2, "error: ")
        return error

    assert pretrain("run").status == 0
    assert "--steps 4, this run has 6: choose another --output" in refused("--steps", 6)
    (tmp_path / "run/images_0_24.npy").write_bytes(b"cut")
    assert "images_0_24.npy" in refused()
    (tmp_path / "run/checkpoint.pt").write_bytes(b"cut")
    assert "checkpoint.pt: the checkpoint is damaged: delete it to start again" in refused()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", 5], "--batch 8 is more than --images 5"),
        (["--every", 0], "expected an integer >= 1, got '0'"),
        (["--steps", "many"], "expected an integer >= 1, got 'many'"),
        (["--lr", "nan"], "expected a number > 0, got 'nan'"),
    ],
)
def test_invalid_options_are_refused(pretrain, tmp_path, options, words):
    status, _, errors = pretrain("run", *options)
    assert status == 2
    assert words in errors[-1]
    assert not (tmp_path / "run").exists()
