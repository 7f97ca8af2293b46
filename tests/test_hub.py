"""Exported folders on the Hugging Face Hub: what is asked of huggingface_hub, and what its refusals become."""

import pytest
import torch
from huggingface_hub import HfApi
from learned import images_of
from marks import one_line

from inference import export, hub
from inference.classifier import PromptedClassifier

pytestmark = pytest.mark.slow

NAME = "me/birds"


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A Hub that does not answer, and an empty cache."""
    for key, value in {"ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{key}", value)


def test_a_model_of_the_hub_predicts_as_its_folder(exported, deep, eurosat, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda *name, **options: asked.append((name, options)) or exported)
    images = list(images_of(eurosat, range(6)))
    expected = PromptedClassifier.from_pretrained(exported, str(deep)).logits(images)
    assert torch.equal(PromptedClassifier.from_pretrained(NAME, str(deep), revision="v1").logits(images), expected)
    patterns = ["config.json", "prompts.safetensors", "calibration.json"]
    assert asked == [((NAME,), {"revision": "v1", "allow_patterns": patterns})]


@pytest.mark.parametrize("name", ["me/cats", "nowhere", "../me/b", "me/b\n"])
def test_a_model_that_cannot_be_had_is_one_line(name, nobody):
    with one_line("me/cats to http://127.0.0.1:9 failed" if name == "me/cats" else "is not the name of a model"):
        PromptedClassifier.from_pretrained(name)


def test_export_uploads_the_folder_to_a_private_repository(finished, command, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr(HfApi, "create_repo", lambda api, name, **options: asked.append(options) or f"hub/{name}")
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **options: asked.append(options))
    done = command(export, finished("CoOp"), "--to", tmp_path / "out", "--push-to-hub", NAME)
    assert "Uploaded to hub/me/birds" in done.printed and asked[0] == {"private": True, "exist_ok": True}
    assert asked[1]["folder_path"] == tmp_path / "out" and asked[1]["repo_id"] == NAME
    assert set(asked[1]["allow_patterns"]) == {"config.json", "prompts.safetensors", "README.md"}
    assert "class_matrix.safetensors" in asked[1]["delete_patterns"]  # of an export before


@pytest.mark.parametrize(("token", "name"), [("", NAME), ("hf_token", "birds"), ("hf_wrong", NAME)])
def test_refused_uploads_are_one_line(token, name, nobody, finished, command, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert command(export, finished("CoOp"), "--to", tmp_path / "out", "--push-to-hub", name).error
    assert (tmp_path / "out/config.json").exists() == (token == "hf_wrong")
