"""Many images and many classes: memory is bounded, or a line says what is too much."""

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from dassl.data.datasets import Datum
from marks import one_line

from clip.backbone import common_preprocessing, preprocessing
from fit import fit as story
from fit import trials
from fit.candidates import CANDIDATES, CLOSED_FORM, Candidate
from fit.estimator import Classifier
from fit.heads import Heads
from inference import calibration_images
from inference.classifier import PromptedClassifier
from inference.load import load
from measures import predictions
from trainers import proker, vision_probe
from trainers.base import feature_method, prompted

pytestmark = pytest.mark.slow


@pytest.fixture
def heads(tiny):
    return Heads(PromptedClassifier.zero_shot(str(tiny), ["red", "green", "blue"]))


@pytest.fixture
def examples():
    """Features (30, 64) and labels (30,)."""
    labels = torch.arange(30) % 3
    noise = torch.randn(30, 64, generator=torch.Generator().manual_seed(1))
    return noise + 3 * torch.eye(64)[labels], labels


@pytest.mark.parametrize("method", ["CoOp", "MPL", "KgCoOp"])
def test_texts_of_many_classes_are_encoded_in_parts(method, finished, monkeypatch):
    names = [f"class {number}" for number in range(7)]
    classifier = load(finished(method))
    expected = classifier.logits(classifier.black(), names)
    sizes = []
    original = prompted.parts_of
    monkeypatch.setattr(prompted, "CLASSES", 3)
    monkeypatch.setattr(
        prompted, "parts_of", lambda texts: sizes.append(len(original(texts))) or original(texts)
    )
    again = load(finished(method))
    torch.testing.assert_close(again.logits(again.black(), names), expected, rtol=0, atol=1e-5)
    assert max(sizes) == 3


def test_a_regression_of_many_classes_is_solved_in_parts(heads, examples, monkeypatch):
    answers = heads.answers(Candidate("VisionProbe"), examples, examples[0])
    monkeypatch.setattr(vision_probe, "MOST_TARGETS", 30)
    in_parts = heads.answers(Candidate("VisionProbe"), examples, examples[0])
    torch.testing.assert_close(in_parts, answers)


@pytest.mark.parametrize("method", ["LPPlusPlus", "LinearProbe"])
def test_heads_with_numbers_for_each_image_and_class_have_a_limit(
    method, heads, examples, monkeypatch
):
    candidate = next(one for one in CANDIDATES if one.method == method)
    heads.answers(candidate, examples, examples[0])
    monkeypatch.setattr(feature_method, "MOST_PAIRS", 89)
    with one_line(f"{method} has numbers for 30 views of images and 3 classes", "or GDA"):
        heads.answers(candidate, examples, examples[0])


@pytest.mark.parametrize(
    ("method", "module", "name", "most"),
    [("LPPlusPlus", feature_method, "MOST_PAIRS", 80), ("ProKeR", proker, "MOST_ROWS", 28)],
)
def test_a_limit_of_the_final_fit_is_known_before_its_folds(
    method, module, name, most, heads, examples, monkeypatch
):
    """Folds were computed for minutes, and the fit ended in an error."""
    settings = {"LPPlusPlus": {"STEP": 30}, "ProKeR": {"BETA": 2.0, "LAMBDA": 0.1}}
    candidate = Candidate(method, {"AUGMENT_EPOCH": 1} | settings[method])
    folds = np.arange(30)[None] % 5
    heads.held_out(candidate, examples, folds)
    monkeypatch.setattr(module, name, most)  # which the images of four folds are below
    with one_line(f"{method} has"):
        heads.held_out(candidate, examples, folds)


def test_the_limit_of_a_kernel_is_printed_with_its_thousands(monkeypatch):
    monkeypatch.setattr(proker, "MOST_ROWS", 1500)
    with one_line("ProKeR has 2,400 views of images", "1,500 is the most"):
        proker.ProKeR.check_size(2400, 3)


def test_a_calibration_has_a_limit(tiny, photos, monkeypatch):
    classifier = PromptedClassifier.zero_shot(str(tiny), ["red", "green", "blue"])
    items = [Datum(str(photos / "b.png"))] * 4
    assert calibration_images.outputs_of(classifier, items).logits.shape == (4, 3)
    monkeypatch.setattr(calibration_images, "MOST_LOGITS", 11)
    with one_line("4 images have 12 logits", "give fewer images"):
        calibration_images.outputs_of(classifier, items)


def test_a_fit_of_many_images_and_classes_trains_no_heads(eurosat, tiny, monkeypatch):
    monkeypatch.setattr(story, "MOST_TRAINED", 10)
    monkeypatch.setattr(trials, "MOST_LOGITS", 1500)
    model = Classifier(backbone=str(tiny), minutes=0, groups="none")
    model.fit(eurosat / "eurosat/2750")
    assert {name.split()[0] for name in model.leaderboard_["name"]} <= {*CLOSED_FORM}
    notes = " ".join(model.notes_)
    assert "Heads that train were not tried" in notes and "images choose and estimate" in notes
    named = Classifier(backbone=str(tiny), minutes=0, methods=["ZSLP"], groups="none")
    named.fit(eurosat / "eurosat/2750")
    assert any(name.startswith("ZSLP") for name in named.leaderboard_["name"])


def test_too_large_predictions_are_not_called_damaged(run, monkeypatch):
    folder = run("out", trainer="ZeroshotCLIP")
    predictions.read_predictions(folder)
    monkeypatch.setattr(predictions, "LARGEST_READ", 100)
    with one_line("of arrays: it is too large for this command"):
        predictions.read_predictions(folder)


def test_a_file_of_an_architecture_is_read_as_its_published_weights(tmp_path):
    (tmp_path / "w.pt").touch()
    found = preprocessing(f"ViT-B-16-SigLIP:{tmp_path}/w.pt")
    assert found["PIXEL_MEAN"] == (0.5, 0.5, 0.5) and found["RESIZE_MODE"] == "squash"
    assert preprocessing(f"ViT-B-32:{tmp_path}/w.pt")["RESIZE_MODE"] == "shortest"
    common_preprocessing.cache_clear()
    printed = StringIO()
    with redirect_stdout(printed):
        for _ in range(2):
            preprocessing(f"ViT-H-14:{tmp_path}/w.pt")
    assert printed.getvalue().count("read images in several ways") == 1
