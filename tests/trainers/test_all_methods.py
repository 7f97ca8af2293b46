"""Every method through every command: killed and resumed, other classes, predict, export, a study
and its tables.

The table of docs/methods.md says which commands refuse a method, and with which line.
"""

import re

import numpy as np
import pytest
import torch
from drawn import NEED_SENTENCES, arguments, section_pairs, sentences_of
from finished import TIMES
from learned import NAMES, images_of
from marks import of_json, tables, thorough_but

from common.start import ROOT
from inference import export, predict
from inference.load import load
from inference.options import LoadOptions
from trainers import methods
from trainers.base import partial
from trainers.base.feature_method import FittedMethod
from trainers.base.test_time import ViewsMethod

pytestmark = pytest.mark.slow

OTHER = ["grey", "white snow"]
QUICK = {
    "CLIPLoRA": {"N_ITERS": 4},
    "CLIPSVD": {"N_ITERS": 4},
    "TwoStage": {"N_ITERS": 4},
    **dict.fromkeys(("ProLIP", "RLA"), {"STEPS": 5, "AUGMENT_EPOCH": 3}),
    "LoCoOp": {"TOPK": 0.2},
    "TipAdapter": {"SEARCH_STEP": [4, 3]},
    "TipAdapterF": {"SEARCH_STEP": [4, 3]},
    "LPPlusPlus": {"STEPS": 20},
    "GDA": {"K": 6},
    "DPC+CoOp": {"TOPK": 2},
    "ProKeR": {"GRID_BETA": [0.5, 3, 2], "GRID_LAMBDA": [0.001, 1, 3]},
}
PAGE = (ROOT / "docs/methods.md").read_text()
LINES = {f"({number})": line for number, line in re.findall(r"^(\d)\. `(.*?)`", PAGE, re.MULTILINE)}
HEAD, *ROWS = next(table for table in tables(PAGE) if table[0][:2] == ["methods", "train"])
TABLE = [
    (name, dict(zip(HEAD[1:], row[1:], strict=True)))
    for row in ROWS
    for name in re.findall(r"`(\S+?)`", row[0])
]
# One method of each kind; `make test-all` has all of them.
FIRST = {"TaskRes", "TipAdapterF", "GDA", "ZERO"}


def test_every_method_has_a_row():
    assert sorted(name for name, _ in TABLE) == sorted(methods())
    assert {cell for row in ROWS for cell in row[1:]} == {"ok", "–", *LINES}
    for method, row in TABLE:
        assert row["train"] == ("ok" if methods()[method].learns else "–")


@pytest.fixture
def train(launch, eurosat, deep, tmp_path):
    """`train("MPL", "run", "base", options=[...])` -> how train.py ended: two shots, and three
    epochs if it has any.
    """

    def train(method, name, classes="all", options=()):
        kind = methods()[method]
        quick = QUICK.get(method, {}) | ({"VIEWS": 5} if issubclass(kind, ViewsMethod) else {})
        epochs = 1 if issubclass(kind, FittedMethod) else 3
        settings = ["OPTIM.MAX_EPOCH", epochs, "DATASET.SUBSAMPLE_CLASSES", classes]
        settings += ["TRAIN.CHECKPOINT_FREQ", 1, *section_pairs(method, quick)]
        if method in NEED_SENTENCES:
            settings += ["DATASET.SENTENCES", sentences_of(NAMES, tmp_path)]
        if method == "DPC+CoOp":
            first = tmp_path / "CoOp"
            if not first.exists():
                assert train("CoOp", "CoOp", classes).status == 0
            settings += ["TRAINER.COOP.OVER", first]
        own = {"trainer": method, "config": "small", "options": options}
        return launch(*arguments(eurosat, deep, tmp_path / name, *settings, **own))

    return train


def kill(kind, monkeypatch):
    """Runs of a method end in the second epoch, in the fit, or in the test."""
    step = "training_step"
    left = iter(())
    if issubclass(kind, ViewsMethod):
        step = "logits_of_features"
        left = iter(range(8))
    elif kind.is_transductive:
        step = "predict_task"
    elif not kind.learns:
        step = "model_inference"
    elif issubclass(kind, FittedMethod):
        step = "fit"
    original = getattr(kind, step)

    def killed(self, *arguments):
        if (step != "training_step" or self.training.epoch == 1) and next(left, None) is None:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(kind, step, killed)
    if issubclass(kind, ViewsMethod):
        return "Resuming the test after 8 images"
    return "Previous epoch: 1" if step == "training_step" else ""


def outcome(folder):
    """results.json without its times, the predictions, and the learned tensors of the last
    epoch.
    """
    results = of_json(folder / "results.json")
    results["data_use"]["test"].pop("evaluations")
    arrays = dict(np.load(folder / "predictions.npz"))
    checkpoints = sorted(folder.glob("*/model.pth.tar-*"))
    tensors = torch.load(checkpoints[-1], weights_only=False)["state_dict"] if checkpoints else {}
    return {key: value for key, value in results.items() if key not in TIMES}, arrays, tensors


@pytest.mark.parametrize("method", thorough_but(FIRST - {"TaskRes"} | {"PromptSRC"}, methods()))
def test_killed_run_ends_as_if_it_had_not_been(method, train, monkeypatch, tmp_path):
    monkeypatch.setattr(partial, "SECONDS", 0)
    assert train(method, "whole").status == 0
    with monkeypatch.context() as patch:
        words = kill(methods()[method], patch)
        assert train(method, "killed").status == 130
    assert not (tmp_path / "killed/results.json").exists()
    done = train(method, "killed")
    assert done.status == 0 and words in done.printed, done
    (results, *found), (expected, *rest) = (
        outcome(tmp_path / name) for name in ("killed", "whole")
    )
    assert results == expected
    for tensors, others in zip(found, rest, strict=True):
        assert tensors.keys() == others.keys()
        assert all(np.array_equal(value, others[key]) for key, value in tensors.items())


@pytest.mark.parametrize("method", thorough_but(FIRST, methods()))
def test_other_classes_predictions_and_exports(method, train, command, deep, eurosat, tmp_path):
    run = tmp_path / "run"
    images = list(images_of(eurosat, range(6)))[:4]
    row = dict(TABLE)[method]

    def expect(column, done):
        line = LINES.get(row.get(column), "").replace("METHOD", method)
        told = ("The prompts were learned on ", "GDA estimates all classes")
        errors = [error for error in done.errors if not error.startswith(told)]
        assert (done.status, len(errors)) == ((2, 1) if line else (0, 0)), done
        assert not line or line in errors[0]

    kind = methods()[method]
    assert train(method, "run", "base" if kind.transfers else "all").status == 0
    tested = train(method, "new", "new", ["--eval-only", "--model-dir", run])
    expect("`--eval-only` on new classes", tested)
    names = () if kind.learns else ("--classes", *NAMES)
    asked = run, *images, "--backbone", deep
    weights = run, "--to", tmp_path / "weights", "--weights", "--backbone", deep, *names
    if kind.is_transductive:
        expect("predict, other classes", command(predict, *asked, *names))
        expect("export `--weights`", command(export, *weights))
        return
    expect("", command(predict, *asked, *names))
    expect("predict, other classes", command(predict, *asked, "--classes", *OTHER))
    expect("export", command(export, run, "--to", tmp_path / "out", *weights[4:]))
    expect("export `--weights`", command(export, *weights))
    own = load(run, LoadOptions(backbone=str(deep), class_names=list(names[1:])))
    exported = load(tmp_path / "out", backbone=str(deep))
    torch.testing.assert_close(exported.logits(images), own.logits(images), rtol=0, atol=1e-4)
    if row["predict, other classes"] == "ok":
        assert exported.logits(images, OTHER).isfinite().all()
