"""OpenAI's names: weights are downloaded once and verified, and a failed download leaves no file."""

import hashlib
import os

import pytest
import torch
from drawn import features, small_clip
from serving import serving

import clip
from clip import weights
from common import download


@pytest.fixture(scope="module")
def source():
    return small_clip()


@pytest.fixture
def published(source, tmp_path, monkeypatch):
    """A server with the weights of ViT-B/16 under `/<SHA-256>/`."""
    torch.save(source.state_dict(), tmp_path / "served.pt")
    content = (tmp_path / "served.pt").read_bytes()
    path = f"/{hashlib.sha256(content).hexdigest()}/ViT-B-16.pt"
    monkeypatch.setattr(download, "PAUSE", 0)
    with serving({path: content}) as server:
        server.path = path
        monkeypatch.setitem(weights.URLS, "ViT-B/16", f"{server.address}{path}")
        yield server


def test_openai_name_is_downloaded_once_into_the_cache(published, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for _ in range(2):
        model, _ = clip.load("ViT-B/16", "cpu")
        assert torch.equal(features(model), features(source))
    assert len(published.requests) == 1
    assert os.listdir(tmp_path / "home/.cache/clip") == ["ViT-B-16.pt"]

    clip.load("ViT-B/16", "cpu", download_root=str(tmp_path / "elsewhere"))
    assert os.listdir(tmp_path / "elsewhere") == ["ViT-B-16.pt"] and len(published.requests) == 2


def test_damaged_cached_file_is_downloaded_again(published, source, tmp_path, capsys):
    (tmp_path / "ViT-B-16.pt").write_bytes(b"half of it")
    assert torch.equal(features(clip.load_backbone("ViT-B/16", cache=str(tmp_path))), features(source))
    assert "ViT-B-16.pt is not the published file" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["other bytes", "cut off in a chunk", "not found", "no server", "no folder"])
def test_failed_download_gives_a_one_line_error_and_leaves_no_file(fault, published, tmp_path):
    published.faults = [fault] * download.TRIES
    if fault == "other bytes":
        published.files[published.path] = bytes(1000)
    if fault == "no server":
        published.server_close()
    if fault == "no folder":
        (tmp_path / "cache").write_text("in the way")
    with pytest.raises(clip.ClipError, match="cannot download ViT-B/16 from http.*put a verified copy at") as caught:
        clip.load_backbone("ViT-B/16", cache=str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    assert ("SHA-256 is wrong" in str(caught.value)) == (fault == "other bytes")
    assert fault == "no folder" or os.listdir(tmp_path / "cache") == []
