"""Pre-training of the small CLIP: its data, and the weights that it writes."""

import json

import numpy as np
import pytest
import torch

from clip import weights
from datasets.small_world import SmallSource
from datasets.small_world.drawing import Subject
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


@pytest.mark.thorough
def test_pretraining_writes_weights_and_history(command, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "LAYERS", 1)
    monkeypatch.setattr(pretraining, "UNSEEN", 50)
    states = []
    for folder in ("one", "other"):
        options = ["--images", 24, "--batch", 8, "--every", 3, "--steps", 4, "--output", tmp_path / folder]
        assert command(pretraining, *options).status == 0
        states.append(weights.read_state_dict(tmp_path / folder / "small.safetensors"))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    history = json.loads((tmp_path / "one/history.json").read_text())
    assert [row["step"] for row in history] == [3, 4]
    assert 1 < history[1]["loss"] < 4  # of the last step alone: ln 8 is chance
    _, _, errors = command(pretraining, "--images", 3, "--output", tmp_path / "none")
    assert errors[-1].endswith("--batch 256 is more than --images 3: lower it") and not (tmp_path / "none").exists()
