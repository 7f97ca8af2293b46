"""Exported folders on the Hugging Face Hub, with a stand-in for its server."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hub import TOKEN, hub
from learned import images_of
from marks import one_line

from common.start import ROOT
from inference import export
from inference.classifier import PromptedClassifier

pytestmark = pytest.mark.slow

NAME = "me/birds"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """An empty Hub, and an empty cache; a token is set."""
    with hub() as server:
        constants = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": True, "ENDPOINT": server.address}
        constants["HUGGINGFACE_CO_URL_TEMPLATE"] = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for key, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{key}", value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def birds(server, exported):
    """The Hub with an exported folder, and with a program that nobody asked for."""
    server.models[NAME] = {file.name: file.read_bytes() for file in exported.iterdir()}
    server.models[NAME]["prompts.py"] = b"raise SystemExit('it ran')"
    return server


def refused(*words, name=NAME, **options) -> None:
    with one_line(*words):
        PromptedClassifier.from_pretrained(name, **options)


def test_a_model_of_the_hub_predicts_as_its_folder(birds, exported, deep, eurosat, tmp_path):
    images = list(images_of(eurosat, range(6)))
    expected = PromptedClassifier.from_pretrained(exported, str(deep))
    found = PromptedClassifier.from_pretrained(NAME, str(deep))
    assert found.class_names == expected.class_names
    assert torch.equal(found.logits(images), expected.logits(images))
    assert {path.name for path in tmp_path.rglob("snapshots/*/*")} == {"config.json", "prompts.safetensors"}
    assert PromptedClassifier.from_pretrained(NAME, str(deep), revision=birds.commit(NAME)).source == NAME
    refused("HTTP 404", "Revision Not Found", revision="v9")


def test_without_a_connection_the_files_of_the_last_download_are_used(birds, deep, monkeypatch):
    PromptedClassifier.from_pretrained(NAME, str(deep))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert PromptedClassifier.from_pretrained(NAME, str(deep)).source == NAME
    refused("no answer about me/cats from http://127.0.0.1:9", "check the connection", name="me/cats")


ANSWER = {"id": NAME, "sha": 3}


@pytest.mark.parametrize(
    ("name", "answers", "words"),
    [
        ("me/cats", {}, ["the Hub has no model me/cats that you may read", "check the name", "HF_TOKEN"]),
        (
            NAME,
            {"sizes": {"prompts.safetensors": (4 << 30) + 1}},
            ["prompts.safetensors", "larger than 4,294,967,296 bytes"],
        ),
        (NAME, {"sizes": {"config.json": None}}, ["config.json", "or has no known size"]),
        ("nowhere", {}, ["'nowhere' is not the name of a model on the Hub"]),
        ("../me/b", {}, ["is not the name of a model"]),
        ("me/b\n", {}, ["is not the name of a model"]),
        (NAME, {"models": {NAME: {}}}, ["the model me/birds on the Hub has no config.json", "tools/export.py"]),
        (NAME, {"fault": (500,)}, ["the Hub refuses a request about me/birds (HTTP 500", "try again later"]),
        (NAME, {"fault": (200, b"<html>")}, ["no answer about me/birds from"]),
        *[
            (NAME, {"fault": (200, ANSWER | {"siblings": siblings})}, ["me/birds"])
            for siblings in (None, 3, ["x"], [{"size": 3}], [{"rfilename": "config.json", "size": "3"}])
        ],
    ],
)
def test_what_is_not_downloaded(name, answers, words, birds, tmp_path):
    vars(birds).update(answers)
    refused(*words, name=name)
    assert not [request for request in birds.requests if "resolve" in request] and not (tmp_path / "cache").exists()


def test_export_uploads_the_folder_as_one_commit(server, finished, command, deep, tmp_path):
    run, to = finished("CoOp"), tmp_path / "out"
    done = command(export, run, "--to", to, "--weights", "--push-to-hub", NAME)
    assert done.status == 0, done.errors
    assert f"Uploaded to {server.address}/{NAME}" in done.printed
    (asked,) = server.created
    assert asked["name"] == "birds"
    assert asked.get("private") or asked["visibility"] == "private"  # older and newer versions of huggingface_hub
    assert server.models[NAME] == {file.name: file.read_bytes() for file in to.iterdir()}
    assert sum("/commit/" in request for request in server.requests) == 1
    done = command(export, run, "--to", tmp_path / "again", "--push-to-hub", NAME)  # without the class matrix
    assert done.status == 0, done.errors
    assert server.models[NAME].keys() == {"config.json", "prompts.safetensors", "README.md"}
    assert PromptedClassifier.from_pretrained(NAME, str(deep)).method == "CoOp"
    assert "from_pretrained(" in (to / "README.md").read_text()


@pytest.mark.parametrize(
    ("token", "name", "words", "written"),
    [
        ("", NAME, ["there is no token for the Hugging Face Hub: log in by `hf auth login`, or set HF_TOKEN"], False),
        (TOKEN, "birds", ["'birds' is not the name of a model on the Hub: give USER/NAME"], False),
        ("hf_other", NAME, ["the Hub refuses a request about me/birds (HTTP 401", "with a token that may write"], True),
    ],
)
def test_refused_uploads(token, name, words, written, server, finished, command, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    error = command(export, finished("CoOp"), "--to", tmp_path / "out", "--push-to-hub", name).error
    assert [word for word in words if word not in error] == []
    assert (tmp_path / "out/config.json").exists() == written and server.models == {}


@pytest.mark.thorough
def test_the_hub_of_the_environment(birds, deep, tmp_path):
    """In a process of its own, with HF_ENDPOINT."""
    code = "import sys; from inference.classifier import PromptedClassifier as P; "
    code += "print(P.from_pretrained(*sys.argv[1:]).class_names)"
    env = os.environ | {"HF_ENDPOINT": birds.address, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    env["PYTHONPATH"] += f":{ROOT / 'toolbox'}"
    done = subprocess.run([sys.executable, "-c", code, NAME, deep], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = json.loads(birds.models[NAME]["config.json"])["class_names"]
    assert str(names) in done.stdout
