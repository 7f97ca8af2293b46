"""A fit that chooses among several backbones."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from drawn import class_folders
from marks import of_json

from clip import weights_sha256
from fit import choice, sources
from fit import command as fit
from fit import fit as story
from fit.choose import Option, nested
from fit.estimator import Classifier
from inference.models import load
from inference.sample import Sample

QUICK = "--methods", "GDA", "SSText"


@pytest.fixture(scope="module")
def photos(eurosat, tmp_path_factory):
    return class_folders(eurosat, tmp_path_factory.mktemp("photos"), 5)


def option(logits):
    return Option(logits, lambda inside: {0: 1.0})


def test_the_choice_among_backbones_is_right_and_does_not_flatter(random_seed):
    rng = np.random.default_rng(random_seed)
    labels = np.tile(np.arange(4), 15)
    held = choice.folds(labels, np.arange(60), 0)
    sample = Sample.of(labels)

    def guesses():
        return option(rng.normal(size=(2, len(held), 60, 4)))

    knows = option(rng.normal(size=(2, len(held), 60, 4)) + 3 * np.eye(4)[labels])
    found, backbones = nested([guesses(), knows, guesses()], sample, held)
    assert (backbones == 1).all() and choice.correct(found[1], labels).mean() > 0.8
    outside = []
    for _ in range(10):
        found, backbones = nested([guesses() for _ in range(6)], sample, held)
        taken = np.take_along_axis(found, backbones[None, :, :, None], axis=0)[0]
        outside.append(choice.correct(taken, labels).mean())
    assert np.mean(outside) == pytest.approx(0.25, abs=0.06)


def test_a_fit_names_the_price_of_each_backbone_and_keeps_the_choice(
    fitting, photos, tiny, tmp_path
):
    line = photos, "--backbone", tiny, "small", *QUICK
    printed = fitting(*line).printed
    assert "ms an image" in printed
    record = of_json(tmp_path / "model/fit.json")
    rows = {row["backbone"]: row for row in record["backbones"]}
    assert [*rows] == [str(tiny), "small"]
    assert all(row["ms"] > 0 and row["megabytes"] > 0 for row in rows.values())
    assert {row["backbone"] for row in record["candidates"]} == {*rows}
    config = of_json(tmp_path / "model/config.json")
    chosen = next(name for name in rows if weights_sha256(name) == config["backbone_sha256"])
    assert f"on {chosen}" in printed
    assert chosen in (tmp_path / "model/report.html").read_text()
    classifier = load(tmp_path / "model", backbone=chosen)
    assert len(classifier.class_names) == 6
    assert "Already done" in fitting(*line).printed
    # A single backbone is another request
    assert "Already done" not in fitting(photos, *QUICK).printed


def test_the_classifier_takes_a_list(photos, tiny):
    model = Classifier(backbone=[str(tiny), "small"], minutes=0, methods=("GDA",)).fit(photos)
    assert model.backbone_ in (str(tiny), "small")
    assert {*model.leaderboard_["backbone"]} == {str(tiny), "small"}
    again = pickle.loads(pickle.dumps(model))
    paths = [str(path) for path in sorted(photos.glob("*/*"))]
    assert again.backbone_ == model.backbone_
    assert (again.predict(paths) == model.predict(paths)).all()
    with pytest.raises(ValueError, match="empty list"):
        Classifier(backbone=[]).fit(photos)


def test_slow_backbones_are_left_out_and_a_killed_fit_knows_their_times(
    fitting, photos, tiny, monkeypatch
):
    times = iter([3.0, 50.0])
    monkeypatch.setattr(sources, "milliseconds", lambda encoder: next(times))
    line = photos, "--backbone", tiny, "small", "--max-ms", "20", *QUICK
    with monkeypatch.context() as killing, pytest.raises(ZeroDivisionError):
        killing.setattr(story, "decide_among", lambda *arguments: 1 / 0)
        fitting.main(*line)
    printed = fitting(*line).printed  # no third time is measured
    assert "Left out: small takes 50.0 ms" in printed


def test_images_stand_before_several_backbones(command):
    error = command(fit, "--to", "model", "--backbone", "ViT-B/16", "RN50").error
    assert "IMAGES is missing: write it before options with several values" in error
    request = fit.parse(["birds", "--to", "model", "--backbone", "small", "RN50"])
    assert (request.backbones, request.images) == (("small", "RN50"), Path("birds"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["small", "small"], "have the same weights"),
        (["small", "--max-ms", "1e-6"], "raise --max-ms: small takes"),
        (["small", "none.pt"], "none.pt does not exist"),
    ],
)
def test_bad_backbones_are_one_line(options, words, fitting, photos, tmp_path):
    assert words in fitting(photos, *QUICK, "--backbone", *options).error
    assert not (tmp_path / "model").exists()
