"""Exported folders on the Hugging Face Hub: huggingface_hub downloads from a local server; uploads are recorded."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import HfApi
from learned import images_of
from marks import one_line
from serving import running

from inference import export
from inference.classifier import PromptedClassifier

pytestmark = pytest.mark.slow

NAME = "me/birds"


class Handler(BaseHTTPRequestHandler):
    """Answers for one model: its list of files, and the files."""

    def do_GET(self):
        files, path = self.server.files, self.path.partition("?")[0]
        self.server.requests.append(path)
        content = b""
        if re.fullmatch(rf"/api/models/{NAME}(/revision/main)?", path):
            content = json.dumps({"id": NAME, "sha": "1" * 40, "siblings": [{"rfilename": file} for file in files]})
        elif path == f"/api/models/{NAME}/tree/{'1' * 40}":
            entries = [{"type": "file", "path": file, "oid": "2" * 40, "size": len(files[file])} for file in files]
            content = json.dumps(entries)
        elif path.startswith(f"/{NAME}/resolve/"):
            content = files[path.rpartition("/")[2]]
        content = content.encode() if isinstance(content, str) else content
        self.send_response(200 if content else 404)
        self.send_header("X-Repo-Commit" if content else "X-Error-Code", "1" * 40 if content else "RepoNotFound")
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, *args):
        """Nothing on stderr."""


@pytest.fixture
def server(exported, monkeypatch, tmp_path):
    """A Hub with an exported folder and a program that nobody asked for, and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {file.name: file.read_bytes() for file in exported.iterdir()} | {"prompts.py": b"raise SystemExit"}
    server.requests, address = [], f"http://127.0.0.1:{server.server_port}"
    constants = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": True, "ENDPOINT": address}
    constants["HUGGINGFACE_CO_URL_TEMPLATE"] = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for key, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{key}", value)
    with running(server):
        yield server


def test_a_model_of_the_hub_predicts_as_its_folder(server, exported, deep, eurosat, tmp_path, monkeypatch):
    images = list(images_of(eurosat, range(6)))
    expected = PromptedClassifier.from_pretrained(exported, str(deep)).logits(images)
    assert torch.equal(PromptedClassifier.from_pretrained(NAME, str(deep)).logits(images), expected)
    assert {path.name for path in tmp_path.rglob("snapshots/*/*")} == {"config.json", "prompts.safetensors"}
    with one_line("the Hub has no model me/cats"):
        PromptedClassifier.from_pretrained("me/cats")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers
    assert torch.equal(PromptedClassifier.from_pretrained(NAME, str(deep)).logits(images), expected)
    with one_line("me/cats to http://127.0.0.1:9 failed", "check the connection"):
        PromptedClassifier.from_pretrained("me/cats")
    before = len(server.requests)
    for name in ("nowhere", "../me/b", "me/b\n"):
        with one_line("is not the name of a model"):
            PromptedClassifier.from_pretrained(name)
    assert len(server.requests) == before


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
    assert "from_pretrained(" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(("token", "name"), [("", NAME), ("hf_token", "birds"), ("hf_wrong", NAME)])
def test_refused_uploads_are_one_line(token, name, server, finished, command, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert command(export, finished("CoOp"), "--to", tmp_path / "out", "--push-to-hub", name).error
    assert (tmp_path / "out/config.json").exists() == (token == "hf_wrong")
