"""Artefacts: what they hold, that they predict the same elsewhere, and that nothing in them is
trusted.
"""

import json
import shutil
from pathlib import Path

import pytest
from drawn import differing, prompts_in, results
from learned import images_of, rows_of
from marks import of_json, one_line, to_json
from safetensors.torch import load_file, save_file

from common.files import checksum
from inference import predict
from trainers.base.checkpoints import described


@pytest.fixture
def copied(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "moved"))


def changed(folder: Path, **values) -> Path:
    """The artefact with these values in its config.json."""
    file = folder / "config.json"
    to_json(file, of_json(file) | values)
    return folder


def test_artefact_holds_the_learned_tensors_and_a_description(finished, exported, deep):
    content = of_json(exported / "config.json")
    tensors = load_file(exported / "prompts.safetensors")
    assert differing(tensors, prompts_in(finished("CoOp"))) == []
    accuracy = results(finished("CoOp"))["accuracy"]
    assert content["backbone"] == deep.name and content["backbone_sha256"] == checksum(deep)
    assert content["class_names"] == ["red", "green field", "blue lake"]
    training = content["training"]
    assert training["accuracy"] == accuracy and training["seed"] == 1
    assert content["input"]["SIZE"] == [32, 32] and content["input"]["TRANSFORMS"] == ["normalize"]
    card = (exported / "README.md").read_text()
    assert f"{accuracy:.2f} % on 12 images" in card and content["backbone_sha256"] in card
    assert str(deep.parent) not in card + json.dumps(content)  # no path of this machine


def test_moved_artefact_predicts_the_same_without_a_dataset(
    finished, copied, command, deep, eurosat, monkeypatch
):
    images = list(images_of(eurosat, range(6)))
    expected = rows_of(command, finished("CoOp"), *images)
    facts = of_json(copied / "config.json")
    del facts["tokeniser"], facts["sentences"]  # which an earlier version did not write
    to_json(copied / "config.json", facts)
    monkeypatch.chdir(copied.parent)
    rows = rows_of(command, "moved", *images, "--backbone", deep)
    assert [row | {"model": "CoOp"} for row in rows] == expected


def test_a_model_of_an_older_fit_with_classes_without_images_prints_one_line(
    copied, command, deep, photos
):
    folder = changed(copied, offset=3.0, without_images=["red"])
    said = "adds a number to the logits of classes without images: fit again"
    assert said in command(predict, folder, photos, "--backbone", deep).error
    with one_line(said):
        described(str(folder / "prompts.safetensors"))


def other_prompts(change, described: bool):
    """Change the learned tensors; `config.json` may state their new SHA-256."""

    def break_it(folder):
        file = folder / "prompts.safetensors"
        save_file({key: change(tensor) for key, tensor in load_file(file).items()}, file)
        if described:
            changed(folder, prompts_sha256=checksum(file))

    return break_it


BROKEN = {
    "tampered prompts": (
        other_prompts(lambda tensor: tensor + 1, False),
        "describes (its SHA-256 differs)",
    ),
    "prompts that are not finite": (
        other_prompts(lambda tensor: tensor * float("inf"), True),
        "not finite",
    ),
    "a later format": ({"format": 2}, "its format is not 1"),
    "a nested setting": ({"settings": {"N_CTX": [[1]]}}, "numbers and lists of these"),
    "no method": ({"method": ""}, "--plugin FILE"),
    "other settings": ({"settings": {"N_CTX": 2}}, "expected is (2, 64)"),
    "other weights": ({"backbone_sha256": "0" * 64}, "with SHA-256 0000000000000000..., "),
    # No path in an artefact is followed.
    "weights of another machine": (
        {"backbone": "/etc/passwd"},
        "the weight file '/etc/passwd': give it by --backbone",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_artefact_is_refused_in_one_line(name, copied, command, deep, eurosat):
    change, reason = BROKEN[name]
    change(copied) if callable(change) else changed(copied, **change)
    options = [] if name == "weights of another machine" else ["--backbone", deep]
    done = command(predict, copied, eurosat, *options, "--json")
    assert reason in done.error and done.printed == ""
