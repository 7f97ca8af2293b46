"""Settings and backbones that a method cannot use end in one line; a file that cannot be imported leaves the others."""

import sys

import pytest

import trainers
from common.start import ROOT
from experiments import methods as facts
from experiments.protocols import recipe


@pytest.fixture
def run_refused(refused, eurosat, deep, tiny, tmp_path):
    """`run_refused(method, backbone, settings, *words)`: train.py refuses it with these words."""

    def run_refused(method, backbone, settings, *words):
        config = ROOT / "configs/trainers" / method / f"{recipe(method, 'few_shot').cfg}.yaml"
        argv = ["--root", eurosat, "--backbone", {"deep": deep, "tiny": tiny}[backbone], "--trainer", method]
        argv += ["--config-file", config, "--dataset-config-file", ROOT / "configs/datasets/eurosat.yaml"]
        argv += ["--output-dir", tmp_path / "out", "INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0]
        section = trainers.methods()[method].section()
        pairs = [(f"TRAINER.{section}.{key}", value) for key, value in settings.items()]
        refused([*argv, *(item for pair in pairs for item in pair)], *words)

    return run_refused


@pytest.mark.parametrize(
    ("method", "backbone", "settings", "words"),
    [
        ("TCP", "tiny", {}, ["TCP adds prompts before text layer 8", "has 4 layers", "more than 8"]),
        ("TCP", "deep", {"N_CTX": 5}, ["TRAINER.TCP.N_CTX is 5", "an integer from 1 to 4"]),
        ("TCP", "deep", {"CSC": True}, ["TRAINER.TCP.CSC is True", "one context for all classes"]),
        ("TCP", "deep", {"CLASS_TOKEN_POSITION": "middle"}, ["CLASS_TOKEN_POSITION is 'middle'", "before their names"]),
        ("UPT", "deep", {"CLASS_TOKEN_POSITION": "last"}, ["TRAINER.UPT.CLASS_TOKEN_POSITION", "end, middle, front"]),
        ("UPT", "deep", {"PROJECT_DIM": 0}, ["TRAINER.UPT.PROJECT_DIM is 0", "an integer from 1"]),
        ("UPT", "deep", {"N_CTX_TEXT": 90}, ["has 94 tokens", "77 positions"]),
        ("MMRL", "tiny", {}, ["the last of TRAINER.MMRL.REP_LAYERS is 12", "has 4 layers"]),
        ("MMRL", "deep", {"REP_LAYERS": [11, 12, 13]}, ["REP_LAYERS is 13", "has 12 layers", "1 to 12"]),
        ("MMRL", "deep", {"REP_LAYERS": [6, 8]}, ["TRAINER.MMRL.REP_LAYERS is [6, 8]", "in order and without gaps"]),
        ("MMRL", "deep", {"REP_LAYERS": [7, 6]}, ["TRAINER.MMRL.REP_LAYERS is [7, 6]", "in order and without gaps"]),
        ("MMRL", "deep", {"REP_LAYERS": [6, 6]}, ["TRAINER.MMRL.REP_LAYERS is [6, 6]", "in order and without gaps"]),
        ("MMRL", "deep", {"REP_LAYERS": [0, 1]}, ["TRAINER.MMRL.REP_LAYERS is [0, 1]", "from 1"]),
        ("MMRL", "deep", {"REP_LAYERS": []}, ["TRAINER.MMRL.REP_LAYERS is []", "from 1"]),
        ("MMRL", "deep", {"REP_LAYERS": ["a", 7.5]}, ["TRAINER.MMRL.REP_LAYERS is ['a', 7.5]", "a list"]),
        ("MMRL", "deep", {"REP_LAYERS": 6}, ["TRAINER.MMRL.REP_LAYERS", "list"]),
        ("MMRL", "deep", {"ALPHA": 1.5}, ["TRAINER.MMRL.ALPHA is 1.5", "a number from 0 to 1"]),
        ("MMRL", "deep", {"TASK": "XD"}, ["TRAINER.MMRL.TASK is 'XD'", "B2N, FS, CD"]),
        ("CLIPLoRA", "deep", {"R": 0}, ["TRAINER.CLIPLORA.R is 0", "an integer from 1 to 1,024"]),
        ("CLIPLoRA", "deep", {"ALPHA": -1}, ["TRAINER.CLIPLORA.ALPHA is -1", "a number from 0"]),
        ("CLIPLoRA", "deep", {"DROPOUT_RATE": 1.0}, ["TRAINER.CLIPLORA.DROPOUT_RATE is 1.0", "from 0 to 0.95"]),
        ("CLIPLoRA", "deep", {"N_ITERS": 0}, ["TRAINER.CLIPLORA.N_ITERS is 0", "an integer from 1"]),
        ("CLIPLoRA", "deep", {"PARAMS": ["q", "z"]}, ["PARAMS is ['q', 'z']", "some of q, k, v and o"]),
        ("CLIPLoRA", "deep", {"PARAMS": ["q", "q"]}, ["PARAMS is ['q', 'q']", "some of q, k, v and o"]),
        ("CLIPLoRA", "deep", {"PARAMS": []}, ["PARAMS is []", "some of q, k, v and o"]),
        ("CLIPLoRA", "deep", {"ENCODER": "image"}, ["TRAINER.CLIPLORA.ENCODER is 'image'", "both, text, vision"]),
        ("CLIPLoRA", "deep", {"POSITION": "top"}, ["TRAINER.CLIPLORA.POSITION is 'top'", "all, bottom, mid"]),
        ("CLIPLoRA", "tiny", {"POSITION": "up"}, ["TRAINER.CLIPLORA.POSITION is up", "do not exist: give all"]),
        ("MMA", "deep", {"ADAPTER_START": 9, "ADAPTER_END": 8}, ["ADAPTER_START is 9", "the last block is 8"]),
        ("MMA", "deep", {"ADAPTER_END": 13}, ["TRAINER.MMA.ADAPTER_END is 13", "has 12 blocks"]),
        ("MMA", "deep", {"ADAPTER_DIM": 0}, ["TRAINER.MMA.ADAPTER_DIM is 0", "an integer from 1"]),
        ("MMA", "deep", {"ADAPTER_SCALE": 0}, ["TRAINER.MMA.ADAPTER_SCALE is 0", "a number from 1e-09"]),
        ("LoCoOp", "deep", {}, ["TRAINER.LOCOOP.TOPK is 200, and there are 6 classes", "give 1, or 0.2"]),
        ("LoCoOp", "deep", {"TOPK": 2.5}, ["TOPK is 2.5", "a number of classes, or a share of them below 1"]),
        ("LoCoOp", "deep", {"LAMBDA": -0.5}, ["TRAINER.LOCOOP.LAMBDA is -0.5", "a number from 0"]),
        ("DePT+CoOp", "deep", {"WEIGHT": 1.5}, ["TRAINER.COOP.WEIGHT is 1.5", "a number from 0 to 1"]),
        ("DePT+CoOp", "deep", {"TYPE": "cosine"}, ["TRAINER.COOP.TYPE is 'cosine'", "linear, similarity"]),
        ("DePT+MaPLe", "tiny", {}, ["TRAINER.MAPLE.PROMPT_DEPTH is 9", "4 layers"]),
    ],
    ids=str,
)
def test_refused_in_one_line(method, backbone, settings, words, run_refused):
    run_refused(method, backbone, settings, *words)


def test_a_file_with_a_failing_import_leaves_the_others(tmp_path, monkeypatch, capsys):
    """A syntax error in one method's file ended the runs of all methods."""
    package = tmp_path / "of_a_stranger"
    package.mkdir()
    for name, code in {"a": "x = (", "b": "y = 1\nunknown", "good": "", "__init__": ""}.items():
        (package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert trainers.import_files([str(package)], "of_a_stranger") == ["a", "b"]
    one, other = capsys.readouterr().err.splitlines()
    assert one.startswith("of_a_stranger/a.py is left out: SyntaxError: ") and one.endswith("(a.py, line 1)")
    assert other == "of_a_stranger/b.py is left out: NameError: name 'unknown' is not defined (b.py, line 2)"
    assert "of_a_stranger.good" in sys.modules


def test_facts_about_methods_are_not_kept_while_a_file_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "trainers").mkdir()
    monkeypatch.setattr(facts, "ROOT", tmp_path)
    monkeypatch.setattr(trainers, "BROKEN", ["mine"])
    facts.kept_facts.cache_clear()
    assert "CoOp" in facts.kept_facts() and not any(tmp_path.rglob("methods.json"))
    monkeypatch.setattr(trainers, "BROKEN", [])
    facts.kept_facts.cache_clear()
    assert "CoOp" in facts.kept_facts() and any(tmp_path.rglob("methods.json"))
    facts.kept_facts.cache_clear()
