"""Backbones and tokenisers of the Hugging Face Hub, from a server of the test that answers as it does."""

import json
import shutil
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tiny_models import saved, write_tokeniser

import clip
from clip import fetch
from common.files import checksum

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

NAME = "hf-hub:owner/model"
WEIGHTS = "open_clip_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Repositories in folders. `server.breaks` is how often it hangs up in the middle of weights."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *line):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        self.answer(body=True)

    def answer(self, body):
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[0] == "api"
        folder = self.server.folder / "/".join(parts[2:4] if is_api else parts[:2])
        file = folder / parts[-1]
        if not folder.is_dir():
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        if is_api:
            files = [{"path": file.name, "size": file.stat().st_size} for file in sorted(folder.iterdir())]
            tree = [{"type": "file", "oid": COMMIT} | file for file in files]
            about = {
                "id": folder.name,
                "sha": COMMIT,
                "siblings": [{"rfilename": file.pop("path"), **file} for file in files],
            }
            self.send(200, json.dumps(tree if "tree" in parts else about).encode(), {})
            return
        if not file.is_file():
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        large, length = file.name == WEIGHTS, len(content)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{checksum(file) if large else length}"'}
        if large and self.server.wrong and body:
            content = bytes(length)
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if first:
            headers["Content-Range"] = f"bytes {first}-{length - 1}/{length}"
        self.send(206 if first else 200, content[first:], headers, body, breaks=large)

    def send(self, status, content, headers, body=True, breaks=False):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if breaks and body and self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(content)


@contextmanager
def serving(folder, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.asked, server.breaks, server.wrong = folder, [], 0, False
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"  # as HF_ENDPOINT sets it before the import
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """Two repositories, of a model that reads tokens of another one; the cache is empty."""
    for key, value in {"HF_HUB_CACHE": str(tmp_path / "cache"), "DOWNLOAD_CHUNK_SIZE": 1000}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{key}", value)
    (tmp_path / "hub/owner/words").mkdir(parents=True)
    write_tokeniser(tmp_path / "hub/owner/words")
    saved("CLIPA", tmp_path / "hub/owner/model", hf_tokenizer_name="owner/words", tokenizer_kwargs={})
    return tmp_path / "hub"


def test_a_backbone_is_fetched_once_with_its_tokeniser(repositories, monkeypatch, command):
    """A connection that breaks in the middle goes on there."""
    weights = repositories / "owner/model" / WEIGHTS
    with serving(repositories, monkeypatch) as server:
        server.breaks = 1
        done = command(fetch, "backbone", NAME)
        assert done.status == 0 and " GB, of " in done.printed and checksum(weights) in done.printed, done.error
        assert "(owner/words)" in done.printed
        half = weights.stat().st_size // 2
        asked = [first for path, first in server.asked if path.endswith(WEIGHTS)]
        assert asked == [None, f"bytes={half - half % 1000}-"]
        server.asked.clear()
        assert command(fetch, "backbone", NAME).status == 0 and not server.asked
    assert command(fetch, "backbone", NAME).status == 0  # the server is gone
    assert clip.weights_sha256(NAME) == checksum(weights)
    assert clip.load_backbone(NAME).tokenizer(["red lake"])[0, :3].tolist() == [7, 11, 1]


def test_damaged_weights_are_refused(repositories, monkeypatch, command):
    with serving(repositories, monkeypatch) as server:
        server.wrong = True
        refused = command(fetch, "backbone", NAME)
        assert refused.status == 2 and "SHA-256 differs" in refused.error and "delete" in refused.error
        Path(refused.error.partition("delete ")[2].partition(",")[0]).unlink()
        server.wrong = False
        assert command(fetch, "backbone", NAME).status == 0


def test_what_the_hub_lacks_is_one_line(repositories, monkeypatch, command):
    with serving(repositories, monkeypatch):
        assert "owner/none" in command(fetch, "backbone", "hf-hub:owner/none").error
        assert "has no open_clip_config.json" in command(fetch, "backbone", "hf-hub:owner/words").error
        shutil.rmtree(repositories / "owner/words")
        error = command(fetch, "backbone", NAME).error
        assert "the tokeniser owner/words" in error and "put its files into" in error
    assert "cannot download owner/none" in command(fetch, "backbone", "hf-hub:owner/none").error
