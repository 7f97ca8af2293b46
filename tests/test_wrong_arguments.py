"""Wrong arguments and files of commands: one line, exit status 2."""

import json
import sys

import pytest
import torch
from drawn import arguments

from experiments.results import main as base2new
from experiments.session import cli_main


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": [1], "epoch": 1},
        {"state_dict": {"prompt_learner.ctx": 3}, "epoch": 1},
        {"state_dict": {}, "epoch": 1, "metadata": "MPL"},
        {"state_dict": {}, "epoch": 1, "metadata": {"method": "MPL", "settings": [1]}},
        {"state_dict": {}, "epoch": 1, "metadata": {"method": "MPL", "settings": {"N_CTX": torch.ones(2)}}},
        {"state_dict": {}, "epoch": 1, "metadata": {"method": ["MPL"]}},
        {"state_dict": {}, "epoch": 1, "metadata": {"class_names": [1]}},
        {"state_dict": {}, "epoch": 1, "metadata": {"backbone": "\x1b]0;title\x07"}},
        {"state_dict": {}, "epoch": -1},
        {"state_dict": {}, "epoch": 10**400},
        {"state_dict": {}, "epoch": "../../x"},
        {"epoch": 1},
        [1, 2],
    ],
)
def test_checkpoint_of_another_form(content, refused, eurosat, tiny, tmp_path):
    folder = tmp_path / "trained/MultiModalPromptLearner"
    folder.mkdir(parents=True)
    torch.save(content, folder / "model.pth.tar-1")
    argv = arguments(eurosat, tiny, tmp_path / "out", options=["--eval-only", "--model-dir", tmp_path / "trained"])
    refused(argv, "model.pth.tar-1 is not a checkpoint of a training run: check --model-dir")


def test_missing_config_file(refused, eurosat, tiny, tmp_path):
    argv = arguments(eurosat, tiny, tmp_path / "out")
    start = argv.index("--config-file")
    refused([*argv[:start], *argv[start + 2 : argv.index("INPUT.SIZE")]], "--config-file is missing: see")


def test_config_file_without_a_backbone(refused, eurosat, tiny, tmp_path):
    (tmp_path / "no_backbone.yaml").write_text("OPTIM: {LR: 0.002}\n")
    argv = arguments(eurosat, tiny, tmp_path / "out", options=["--config-file", tmp_path / "no_backbone.yaml"])
    start = argv.index("--backbone")
    refused([*argv[:start], *argv[start + 2 :]], "MODEL.BACKBONE.NAME is missing: name the backbone in the YAML")


def test_missing_folder_to_resume(refused, eurosat, tiny, tmp_path):
    argv = arguments(eurosat, tiny, tmp_path / "out", options=["--resume", tmp_path / "none"])
    refused(argv, f"there is no folder {tmp_path}/none: ", "; check --resume")


def test_option_behind_the_pairs(refused, eurosat, tiny, tmp_path):
    refused([*arguments(eurosat, tiny, tmp_path / "out"), "--debug"], "options come before the KEY VALUE pairs")


@pytest.mark.parametrize("content", [None, "{", {"accuracy": 5}, {"accuracy": "x", "shots": 1, "seed": 1}])
def test_base2new_names_the_results_it_cannot_read(content, ended, monkeypatch, tmp_path):
    if content is not None:
        (tmp_path / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["base2new", str(tmp_path)])
    status, _, errors = ended(lambda: cli_main(base2new))
    assert status == 2 and len(errors) == 1
    assert f"{tmp_path}/results.json" in errors[0]
