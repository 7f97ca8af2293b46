"""OpenAI's names: weights are downloaded once and verified, and a failed download leaves no file."""

import hashlib
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from drawn import features, small_clip

import clip
from clip import weights
from common import download


@pytest.fixture(scope="module")
def source():
    return small_clip()


@pytest.fixture
def published(source, tmp_path, monkeypatch):
    """A server with the weights of ViT-B/16 under `/<SHA-256>/`; its `fault` can be set."""
    torch.save(source.state_dict(), tmp_path / "served.pt")
    content = (tmp_path / "served.pt").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            server.requests += 1
            self.close_connection = True
            if server.fault == "silence":
                return time.sleep(0.2)
            if server.fault == "not found":
                return self.send_error(404)
            self.send_response(200)
            if server.fault == "cut off in a chunk":
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                return self.wfile.write(b"%x\r\n" % len(content) + content[:1000])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            body = content[:-1] + b"x" if server.fault == "other bytes" else content
            return self.wfile.write(body[: len(body) // 2] if server.fault == "cut off" else body)

        def log_message(self, *args):
            """Keep stderr empty."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.fault = 0, None
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/{hashlib.sha256(content).hexdigest()}/ViT-B-16.pt"
    monkeypatch.setitem(weights.URLS, "ViT-B/16", address)
    monkeypatch.setattr(download, "PAUSE", 0)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_openai_name_is_downloaded_once_into_the_cache(published, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for _ in range(2):
        model, _ = clip.load("ViT-B/16", "cpu")
        assert torch.equal(features(model), features(source))
    assert published.requests == 1
    assert os.listdir(tmp_path / "home/.cache/clip") == ["ViT-B-16.pt"]

    clip.load("ViT-B/16", "cpu", download_root=str(tmp_path / "elsewhere"))
    assert os.listdir(tmp_path / "elsewhere") == ["ViT-B-16.pt"] and published.requests == 2


def test_damaged_cached_file_is_downloaded_again(published, source, tmp_path, capsys):
    (tmp_path / "ViT-B-16.pt").write_bytes(b"half of it")
    assert torch.equal(features(clip.load_backbone("ViT-B/16", cache=str(tmp_path))), features(source))
    assert "ViT-B-16.pt is not the published file" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["other bytes", "cut off", "cut off in a chunk", "not found", "silence", "no server"])
def test_failed_download_gives_a_one_line_error_and_leaves_no_file(fault, published, tmp_path, monkeypatch):
    published.fault = fault
    if fault == "silence":
        monkeypatch.setattr(download, "TIMEOUT", 0.05)
    if fault == "no server":
        published.server_close()
    with pytest.raises(clip.ClipError, match="cannot download ViT-B/16 from http.*put a verified copy at") as caught:
        clip.load_backbone("ViT-B/16", cache=str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    assert ("SHA-256 is wrong" in str(caught.value)) == (fault == "other bytes")
    assert os.listdir(tmp_path / "cache") == []


def test_unwritable_cache_gives_a_one_line_error(published, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(clip.ClipError, match="cannot download ViT-B/16 .*file"):
        clip.load_backbone("ViT-B/16", cache=str(tmp_path / "file"))
