"""Pre-training of the small CLIP: its data, and the weights that it writes."""

import json

import numpy as np
import pytest
from drawn import differing

from clip import weights
from datasets.small_world import SmallSource
from datasets.small_world.drawing import Subject
from experiments import small_clip

pytestmark = pytest.mark.slow


def test_pretraining_data_has_nothing_held_out():
    rng = np.random.default_rng(0)
    subjects = [small_clip.sample_subject(rng) for _ in range(3000)]
    words = {word for subject in subjects for word in subject.words.split()}
    assert words.isdisjoint({"turquoise", "crescent", "crescents", "zigzag"})
    assert {"red", "striped", "triangle", "three", "forest", "river"} <= words
    assert not any(small_clip.held_out(s.colour, s.texture, s.shape) for s in subjects if s.shape)
    assert any(small_clip.held_out(s.colour, s.texture, s.shape) for s in SmallSource.subjects)


def test_captions_describe_the_image_partly_or_fully():
    rng = np.random.default_rng(0)
    captions = [small_clip.caption(Subject("red", "striped", "triangle"), rng) for _ in range(200)]
    assert all("triangle" in caption for caption in captions)
    assert 0 < sum("red striped" in caption for caption in captions) < 200
    assert len(set(captions)) > 40


@pytest.mark.thorough
def test_pretraining_writes_weights_and_history(command, tmp_path, monkeypatch):
    monkeypatch.setattr(small_clip, "LAYERS", 1)
    monkeypatch.setattr(small_clip, "UNSEEN", 50)
    for folder in ("one", "other"):
        options = ["--images", 24, "--batch", 8, "--every", 3, "--steps", 4, "--output", tmp_path / folder]
        assert command(small_clip, *options).status == 0
    one, other = (weights.read_state_dict(tmp_path / folder / "small.safetensors") for folder in ("one", "other"))
    assert differing(one, other) == []
    history = json.loads((tmp_path / "one/history.json").read_text())
    assert [row["step"] for row in history] == [3, 4]
    assert 1 < history[1]["loss"] < 4  # of the last step alone: ln 8 is chance
    _, _, errors = command(small_clip, "--images", 3, "--output", tmp_path / "none")
    assert errors[-1].endswith("--batch 256 is more than --images 3: lower it") and not (tmp_path / "none").exists()
