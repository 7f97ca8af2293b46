"""How the small CLIP is pre-trained: what it sees, and what becomes of a training that is cut off."""

import json

import numpy as np
import pytest
import torch

from clip import weights
from datasets.small_world import SmallSource
from datasets.small_world.drawing import Subject
from experiments.session import cli_main
from experiments.small_clip import pretraining as pretrain_small_clip


def test_pre_training_never_sees_what_is_held_out():
    rng = np.random.default_rng(0)
    subjects = [pretrain_small_clip.sample_subject(rng) for _ in range(3000)]
    words = {word for subject in subjects for word in subject.words.split()}
    assert words.isdisjoint({"turquoise", "crescent", "crescents", "zigzag"})
    assert {"red", "striped", "triangle", "three", "forest", "river"} <= words
    assert not any(pretrain_small_clip.held_out(s.colour, s.texture, s.shape) for s in subjects if s.shape)
    assert any(pretrain_small_clip.held_out(s.colour, s.texture, s.shape) for s in SmallSource.subjects)


def test_captions_say_what_is_to_be_seen_but_not_always_all():
    rng = np.random.default_rng(0)
    captions = [pretrain_small_clip.caption(Subject("red", "striped", "triangle"), rng) for _ in range(200)]
    assert all("triangle" in caption for caption in captions)
    assert 0 < sum("red striped" in caption for caption in captions) < 200
    assert len(set(captions)) > 40


@pytest.fixture
def pretrain(tmp_path, monkeypatch, one_thread, ended):
    """`pretrain(folder, *options)`: four steps of a model of one layer in `tmp_path/folder`, and an `Ended`."""
    monkeypatch.setattr(pretrain_small_clip, "LAYERS", 1)
    monkeypatch.setattr(pretrain_small_clip, "UNSEEN", 50)
    few = ["--images", 24, "--batch", 8, "--every", 3, "--steps", 4]

    def pretrain(folder: str, *options):
        argv = [str(option) for option in (*few, "--output", tmp_path / folder, *options)]
        return ended(lambda: cli_main(lambda: pretrain_small_clip.main(argv)))

    return pretrain


def test_pre_training_goes_on_where_it_was_cut_off(pretrain, tmp_path, monkeypatch):
    def stop_at_the_end(model, *args, retrieval=pretrain_small_clip.retrieval):
        if (tmp_path / "parts/checkpoint.pt").exists():
            raise KeyboardInterrupt
        return retrieval(model, *args)

    assert pretrain("whole").status == 0
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_small_clip, "retrieval", stop_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            pretrain("parts")
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


def test_pre_training_is_not_gone_on_with_under_other_settings_or_from_damaged_files(pretrain, tmp_path):
    def refused(*options):
        status, _, (error,) = pretrain("run", *options)
        assert (status, error[:7]) == (2, "error: ")
        return error

    assert pretrain("run").status == 0
    assert "--steps 4, this one has 6: choose another --output" in refused("--steps", 6)
    (tmp_path / "run/images_0_24.npy").write_bytes(b"cut")
    assert "images_0_24.npy" in refused()
    (tmp_path / "run/checkpoint.pt").write_bytes(b"cut")
    assert "checkpoint.pt is damaged: delete it to begin again" in refused()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", 5], "--batch 8 is more than --images 5"),
        (["--every", 0], "0 is no whole number from 1"),
        (["--steps", "many"], "many is no whole number from 1"),
        (["--lr", "nan"], "nan is no learning rate above 0"),
    ],
)
def test_settings_that_pre_training_cannot_have_are_refused(pretrain, tmp_path, options, words):
    status, _, errors = pretrain("run", *options)
    assert status == 2
    assert words in errors[-1]
    assert not (tmp_path / "run").exists()
