"""tools/fit.py --classes: classes that have no images yet."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import class_folders
from marks import of_json, one_line

from fit import choice, unseen
from fit.candidates import CANDIDATES, Candidate
from fit.decision import decide
from fit.estimator import Classifier
from fit.heads import Heads, logit_std, transfers
from fit.request import FitRequest
from fit.trials import Examples
from inference.behind_tower import BehindTower
from inference.classifier import PromptedClassifier
from inference.models import load
from inference.options import LoadOptions
from inference.sample import Sample
from trainers.base.checkpoints import described

MORE = "brown", "pink"
TRANSFERS = {"ZeroshotCLIP", "CuPL", "TipAdapter", "TipAdapterF", "ProKeR", "CLIPAdapter"}


@pytest.fixture
def photos(eurosat, tmp_path):
    return class_folders(eurosat, tmp_path / "photos", 4)


def test_heads_that_need_an_image_of_each_class_are_not_tried():
    found = {one.method for one in CANDIDATES if transfers(one.method)}
    assert found == TRANSFERS | {"ProLIP", "RLA"}


def test_folds_hold_out_whole_classes():
    labels = np.repeat([0, 1, 3], 4)
    folds = np.tile(np.arange(4), (2, 3))
    for missing, whole in ((1, 2), (3, 3), (30, 3)):
        found = choice.of_classes(folds, labels, missing, 1)
        seen = []
        for row in found:
            is_whole = choice.is_whole(row, labels)
            assert is_whole.sum() == 4 * whole and len(np.unique(row[is_whole])) == whole
            assert (row == folds[0])[~is_whole].all()
            seen.append({*labels[is_whole].tolist()})
        assert whole == 3 or seen[0] != seen[1]  # others in each repeat


def test_a_class_with_one_image_is_not_held_out_as_a_whole():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, *range(2, 9)])
    folds = np.array([[0, 1, 2, 3, 0, 1, 2, 3, *[choice.NEVER] * 7]])
    for seed in range(5):
        (row,) = choice.of_classes(folds, labels, 1, seed)
        assert choice.is_whole(row, labels)[:8].sum() == 4
        assert (row[8:] == choice.NEVER).all()


def test_a_head_that_forgets_classes_without_images_is_not_chosen(tiny, monkeypatch):
    """A head is always right for the classes that it has seen, and never for others."""
    heads = Heads(PromptedClassifier.zero_shot(str(tiny), ["a", "b", "c", "d"]))
    labels = torch.arange(36) % 3
    x = torch.nn.functional.one_hot(labels, 64).float() + 0.01 * torch.randn(36, 64)
    monkeypatch.setattr("fit.heads.get_tensor", lambda *_: None)
    chance = torch.Generator().manual_seed(0)

    def answers(candidate, seen, features):
        truth = torch.nn.functional.one_hot(features[:, :4].argmax(dim=1), 4).float()
        if candidate.method == "ZeroshotCLIP":
            return truth + 0.7 * torch.randn(truth.shape, generator=chance)
        known = torch.bincount(seen[1], minlength=4) > 0
        return truth.masked_fill(~known, -10.0)

    monkeypatch.setattr(heads, "answers", answers)
    monkeypatch.setattr("fit.decision.curve", lambda *_: [])
    examples = Examples(x, labels, np.arange(36), heads.names)
    forgetful = [CANDIDATES[0], Candidate("TipAdapter", {"ALPHA": 1.0, "BETA": 5.5})]
    decision = decide(heads, examples, forgetful, FitRequest("images", "model"))
    assert decision.name == "ZeroshotCLIP"
    assert any("held out, as if they had none" in note for note in decision.notes)
    assert len(decision.trials.folds) == len(decision.logits) == 2
    three = Heads(PromptedClassifier.zero_shot(str(tiny), ["a", "b", "c"]))
    monkeypatch.setattr(three, "answers", lambda *given: answers(*given)[:, :3])
    examples = Examples(x, labels, np.arange(36), three.names)
    assert "TipAdapter" in decide(three, examples, forgetful, FitRequest("images", "model")).name


def test_an_offset_answers_classes_without_images_as_often_as_others():
    """Of three classes, the logits of those whose images are held out are 2 too low."""
    labels = np.repeat([0, 1, 2], 200)
    folds = np.array([np.arange(600) % 2, np.where(labels == 0, 0, np.arange(600) % 2)])
    held = np.arange(600)
    lacking = unseen.without_images(folds, labels, held, 4)
    assert lacking[0].tolist() == [[False, False, False, True]] * 600
    assert (lacking[1, :, 0] == (folds[1] == 0)).all() and not lacking[:, :, 1:3].any()
    chance = np.random.default_rng(0)
    truth = np.eye(4)[labels]
    logits = chance.gumbel(size=(2, 600, 4)) + 2 * truth
    logits[:, :, 3] = -10.0
    sample = Sample.of(labels)
    assert unseen.offset(logits - 2 * lacking, lacking, sample) == pytest.approx(2.6, abs=0.1)
    assert unseen.offset(logits + 2 * lacking, lacking, sample) == 0  # they are answered enough
    assert unseen.offset(logits - 1000 * lacking, lacking, sample) == unseen.LARGEST


@pytest.mark.parametrize("method", ["ProKeR", "TipAdapter", "ProLIP"])
def test_an_offset_is_exported(method, tiny, tmp_path):
    names = ["red", "green", "grey owl", "brown"]
    heads = Heads(PromptedClassifier.zero_shot(str(tiny), names))
    x = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    seen = x, torch.arange(12) % 2
    plain = next(one for one in CANDIDATES if one.method == method)
    raised = replace(plain, offset=3.0)
    before, after = (heads.answers(one, seen, x) for one in (plain, raised))
    added = 3 * logit_std(before)
    torch.testing.assert_close(after - before, torch.tensor([[0, 0, added, added]] * 12))
    classifier = heads.classifier([(raised, 1.0)], seen, {})
    classifier.save(tmp_path)
    record = of_json(tmp_path / "config.json")
    assert record["without_images"] == names[2:] and record["offset"] == pytest.approx(added)
    with one_line("adds a number to the logits of classes without images", "tools/predict.py"):
        described(str(tmp_path / "prompts.safetensors"))
    loaded = load(tmp_path, LoadOptions(backbone=str(tiny)))
    behind = BehindTower(loaded)
    torch.testing.assert_close(behind.predict(x).logits, after, atol=1e-3, rtol=1e-3)
    others = behind.predict(x, ["red", "brown"]).logits
    torch.testing.assert_close(others, after[:, [0, 3]], atol=1e-3, rtol=1e-3)
    heads.classifier([(plain, 1.0)], seen, {}).save(tmp_path)
    assert "offset" not in of_json(tmp_path / "config.json")


def test_a_fit_with_classes_without_images(fitting, photos, tiny, tmp_path):
    model = tmp_path / "model"
    line = photos, "--methods", "GDA", "ProKeR", "--classes", "pink"
    printed = fitting.works(*line, "brown").printed
    assert "there is none of brown, pink" in printed
    assert "The estimate is of the classes with images" in printed
    assert "with one image: brown" not in printed
    record = of_json(model / "fit.json")
    assert {*MORE} < {*record["names"]} and record["estimate"]
    assert not any("GDA" in row["name"] for row in record["candidates"])
    assert {*MORE} < {*load(model, LoadOptions(backbone=str(tiny))).class_names}
    assert "no image: nothing is known" in (model / "report.html").read_text()
    assert "Already done" in fitting(*line, "brown").printed
    assert "Already done" not in fitting(*line, "violet").printed


def test_a_class_with_images_in_other_letters_is_not_a_new_one(fitting, photos):
    next(photos.iterdir()).rename(photos / "GreyOwl")
    assert "there are images of 'GreyOwl'" in fitting(photos, "--classes", "grey owl").error


def test_more_images_keep_classes_without_images(fitting, photos, tiny, tmp_path):
    fitting.works(photos, "--methods", "ProKeR", "--classes", *MORE)
    options = {"backbone": str(tiny), "minutes": 0, "methods": ["ProKeR"]}
    classifier = Classifier.load(tmp_path / "model", **options)
    classifier.partial_fit([next(photos.rglob("*.png"))], ["brown"])
    assert {*MORE} < {*classifier.classes_}


def test_test_images_may_be_of_classes_without_images(fitting, photos, tmp_path):
    (tmp_path / "test/brown").mkdir(parents=True)
    shutil.move(next(photos.rglob("*.png")), tmp_path / "test/brown/one.png")
    line = photos, "--methods", "ProKeR", "--test", tmp_path / "test"
    fitting.works(*line, "--classes", "brown")
    assert "which the training images lack" in fitting(*line, to="other").error


def test_nothing_is_said_of_an_estimate_that_is_not_there(fitting, eurosat, tmp_path):
    photos = class_folders(eurosat, tmp_path / "photos", 1)
    printed = fitting.works(photos, "--methods", "ProKeR", "--classes", *MORE).printed
    assert "none could be held out" in printed and "The estimate is" not in printed
