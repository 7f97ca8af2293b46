"""The verbs of scikit-learn on a fit, of images and of matrices."""

import json
import pickle
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from marks import one_line
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from clip import ImageOutput
from common.errors import UsageError
from fit.estimator import Classifier
from fit.matrix import guessing
from fit.options import FitOptions, FitRequest
from inference.load import load
from inference.options import LoadOptions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(eurosat):
    """Paths and labels: eight images of each of six classes."""
    folders = sorted((eurosat / "eurosat/2750").iterdir())
    paths = [str(path) for folder in folders for path in sorted(folder.iterdir())[:8]]
    return np.array(paths), np.array([f"class {Path(path).parent.name}" for path in paths])


@pytest.fixture(scope="module")
def model(tiny, images):
    return quick(tiny, max_error=95).fit(*images)


def quick(tiny, **options):
    return Classifier(backbone=str(tiny), minutes=0, methods=("GDA",), **options)


def test_a_table_has_its_images_in_a_column(model, images):
    paths, _ = images
    expected = model.predict(paths[:4]).tolist()
    table = pd.DataFrame({"path": paths[:4], "size": range(4)})
    for given in (table, table[["path"]], table[["path"]].rename(columns={"path": "file"})):
        assert model.predict(given).tolist() == expected
    with one_line("X is a table without a column path: give a column"):
        model.predict(table.rename(columns={"path": "file"}))


def test_one_method_may_be_a_text(tiny, images):
    one = Classifier(backbone=str(tiny), minutes=0, methods="GDA").fit(*images)
    assert set(one.leaderboard_["name"].str.partition(" ")[0]) == {"ZeroshotCLIP", "GDA"}


def test_a_fitted_classifier_answers_like_its_saved_model(model, images, tiny, tmp_path):
    paths, labels = images
    probabilities = model.predict_proba(paths)
    assert probabilities.shape == (48, 6) and np.allclose(probabilities.sum(axis=1), 1)
    assert (model.classes_[probabilities.argmax(axis=1)] == model.predict(paths)).all()
    assert model.score(paths, labels) == (model.predict(paths) == labels).mean()
    sets = model.predict_sets(paths[:9], coverage=0.8)
    assert all(
        answer in names for answer, names in zip(model.predict(paths[:9]), sets, strict=True)
    )
    assert set(model.predict(paths, unknown="?")) <= {*model.classes_, "?"}
    assert model.estimate_.low < model.estimate_.accuracy <= model.estimate_.high
    assert model.leaderboard_["accuracy"].is_monotonic_decreasing and len(model.leaderboard_) == 2
    assert "new images like yours are named right" in model.report_

    with one_line("the classifier promises no error: give max_error"):
        quick(tiny).fit(paths, labels).predict(paths, unknown="?")

    model.save(tmp_path / "model")
    with one_line("choose a new folder"):
        model.save(tmp_path / "model")
    again = Classifier.load(tmp_path / "model", backbone=str(tiny))
    command = load(tmp_path / "model", LoadOptions(backbone=str(tiny)))
    for other in (again.predict_proba(paths), command.predict(paths).probabilities):
        assert np.array_equal(other, probabilities.astype(np.asarray(other).dtype))
    assert again.estimate_ == model.estimate_


def test_what_scikit_learn_does_with_estimators(model, images, tiny):
    paths, labels = images
    twin = pickle.loads(pickle.dumps(model))
    assert np.array_equal(twin.predict_proba(paths), model.predict_proba(paths))
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(paths)
    assert cross_val_score(quick(tiny), paths, labels, cv=2).shape == (2,)


def test_images_in_memory_and_numbers_as_labels(images, tiny):
    paths, _ = images
    labels = np.arange(48) // 8
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    by_path = quick(tiny).fit(paths, labels)
    for kind in (list, lambda arrays: map(Image.fromarray, arrays)):
        in_memory = quick(tiny).fit(kind(arrays), labels)
        assert in_memory.classes_.tolist() == [0, 1, 2, 3, 4, 5]
        assert np.allclose(in_memory.predict_proba(arrays), by_path.predict_proba(paths), atol=1e-5)
    content = [Path(path).read_bytes() for path in paths]
    assert (quick(tiny).fit(content, labels).predict(content) == by_path.predict(paths)).all()
    # As a column of Hugging Face has images that are not decoded
    rows = [{"bytes": content[0], "path": None}, {"bytes": None, "path": paths[1]}]
    rows.append({"bytes": content[2], "path": "the name in an archive.png"})
    assert np.array_equal(by_path.predict_proba(rows), by_path.predict_proba(paths[:3]))


def test_a_folder_needs_no_labels(images, tiny, eurosat):
    model = quick(tiny).fit(eurosat / "eurosat/2750")
    assert model.classes_.tolist() == ["0", "1", "2", "3", "4", "5"]


@pytest.fixture(scope="module")
def grown(tiny, images):
    """A model of four images of each of five classes, to which the others were added."""
    paths, labels = images
    model = quick(tiny).fit(paths[first_of(labels)], labels[first_of(labels)])
    return model.partial_fit(paths[~first_of(labels)], labels[~first_of(labels)])


def first_of(labels):
    return (np.arange(len(labels)) % 8 < 4) & (np.arange(len(labels)) < 40)


def test_more_images_are_fitted_as_if_all_had_come_at_once(grown, tiny, images):
    paths, labels = images
    order = np.argsort(~first_of(labels), kind="stable")
    at_once = quick(tiny).fit(paths[order], labels[order])
    assert grown.estimate_ == at_once.estimate_ and grown.estimate_.images == 48
    assert np.allclose(grown.predict_proba(paths), at_once.predict_proba(paths), atol=1e-5)


def test_a_saved_model_learns_a_new_class(grown, tiny, images, tmp_path):
    paths, labels = images
    grown.save(tmp_path / "model")
    model = Classifier.load(tmp_path / "model", backbone=str(tiny))
    with pytest.raises(ValueError, match="'class 3' and 'class_3' are one class name"):
        model.partial_fit(paths[:1], ["class_3"])
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    model.partial_fit([*noise, *paths[:2]], ["noise"] * 5 + ["class 0"])
    assert model.classes_.tolist() == [*sorted(set(labels)), "noise"]
    assert (model.predict(noise) == "noise").all()
    two_labels, copy = model.notes_
    assert f"Left out as they are in two classes: 2 images, such as {paths[0]}" in two_labels
    assert f"Left out as they are copies of other images: 1 images, such as {paths[1]}" in copy


def test_earlier_images_in_memory_are_learned_from_their_features(tiny, images):
    paths, labels = images
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    options = {"backbone": str(tiny), "minutes": 0, "methods": ("LinearProbe",)}
    model = Classifier(**options).fit(arrays[:40], labels[:40])
    model.partial_fit(arrays[40:], labels[40:])
    assert model.estimate_.images == 48
    at_once = Classifier(**options).fit(arrays, labels)
    assert np.array_equal(model.predict_proba(paths), at_once.predict_proba(paths))


def test_a_deleted_earlier_image_is_named(tiny, images, monkeypatch, tmp_path):
    paths, labels = images
    content = [Path(path).read_bytes() for path in paths]
    model = quick(tiny).fit(content[:40], labels[:40])
    before = model.predict_proba(paths)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with one_line("40 images of the earlier fit are gone, such as"):
        model.partial_fit(content[40:], labels[40:])
    assert np.array_equal(model.predict_proba(paths), before)


@pytest.mark.parametrize(
    ("X", "y", "what"),
    [
        (["a.png"], ["a", "b"], "X has 1 images, and y has 2 labels"),
        (["a.png", "b.png"], ["red_fox", "red fox"], "are one class name"),
        ([np.zeros((3, 8, 8))] * 2, ["a", "b"], "of type float64 and shape"),
        (["a.png", "b.png"], [1.0, np.nan], "image 1 of X has no label in y: leave it out"),
        (["a.png"] * 3, ["a", None, None], "image 1 of X has no label in y: leave it out"),
        (["a.png", "b.png"], ["a", 1], "y has texts and numbers: give one kind of label"),
        (["a.png", "b.png"], [["a", "b"], ["a", "b"]], "1d array"),
        ([{"url": "a.png"}] * 2, ["a", "b"], "NoneType is not an image"),
        (["a.png", "b.png"], None, "X is list, and there is no y: give the label of each image"),
        ("a.png", ["a"], "X is str, and no list of images"),
    ],
)
def test_wrong_arguments_are_value_errors(X, y, what, tiny):
    with pytest.raises(ValueError, match=what):
        quick(tiny).fit(X, y)


def test_a_classifier_has_the_options_and_defaults_of_a_fit():
    options = {one.name: one.default for one in fields(FitOptions)}
    options["random_state"] = options.pop("seed")
    (options["backbone"],) = FitRequest.backbones
    assert options.items() <= Classifier().get_params().items()


@pytest.mark.parametrize("option", ["minutes", "max_error", "max_ms"])
def test_options_below_0_are_refused(option, tiny, images):
    for value in (-1.0, np.nan, "5"):
        with one_line(f"{option} is {value!r}: give a number from 0 to below"):
            quick(tiny).set_params(**{option: value}).fit(*images)
    with one_line("max_error is 100.0: give a number from 0 to below 100"):
        quick(tiny).set_params(max_error=100.0).fit(*images)


@pytest.mark.parametrize("name", ["prior", "coverage", "groups"])
def test_a_misspelt_option_prints_one_line(name, tiny, images):
    """Its default was taken: no guarantee, and nothing said so."""
    with one_line(f"value of {name} 'Cross'"):
        quick(tiny, **{name: "Cross"}).fit(*images)


def test_a_column_of_labels_is_read_and_a_single_image_is_not(tiny, model, images):
    paths, labels = images
    column = quick(tiny).fit(paths, labels[:, None])
    assert np.array_equal(column.predict(paths), model.predict(paths))
    image = Image.open(paths[0])
    row = {"bytes": None, "path": paths[0]}
    for one in (str(paths[0]), Path(paths[0]), b"content", image, np.asarray(image), row, None):
        with one_line("and no list of images: give a list: [X]"):
            model.predict(one)


def test_a_missing_image_or_folder_prints_one_line(model, tiny, tmp_path):
    with one_line("there is no image 'gone.png': check its path"):
        quick(tiny).fit(["gone.png", "lost.png"], ["a", "b"])
    whole = json.loads(model._files["fit.json"])
    damages = [{"images": [{"paths": "a"}]}, {"request": {"minutes": "5"}}]
    texts = [json.dumps(whole | damage) for damage in damages]
    texts.append("[" * 100_000)
    for content in (*texts, "{", "[]", '{"names": [1]}'):
        broken = tmp_path / "broken"
        model.save(broken)
        (broken / "fit.json").write_text(content)
        with pytest.raises(UsageError, match="is damaged .*: restore it, or fit again"):
            Classifier.load(broken, backbone=str(tiny))
        shutil.rmtree(broken)
    model.save(tmp_path / "earlier")
    (tmp_path / "earlier/fit.json").write_text(json.dumps(whole | {"form": 1}))
    with one_line("is a fit of another version: fit again"):
        Classifier.load(tmp_path / "earlier", backbone=str(tiny))
    with one_line("has no fit.json: give the folder of a fit"):
        Classifier.load(tmp_path / "nowhere")
    model.save(tmp_path / "saved")
    with one_line("give the same weights by --backbone (in Python: backbone)"):
        Classifier.load(tmp_path / "saved", backbone="small")


def test_a_loaded_model_knows_a_backbone_that_anybody_may_name(images, tmp_path):
    paths, labels = images
    fitted = Classifier("small", minutes=0, methods=("GDA",)).fit(paths, labels)
    fitted.save(tmp_path / "model")
    loaded = Classifier.load(tmp_path / "model")
    assert loaded.backbone == loaded.backbone_ == "small"
    assert np.array_equal(loaded.predict_proba(paths[:3]), fitted.predict_proba(paths[:3]))


def test_a_loaded_model_has_the_options_of_its_fit(tiny, images, tmp_path):
    paths, labels = images
    sentences = tmp_path / "sentences.json"
    texts = {label: [f"a drawing of {label}"] for label in set(labels)}
    sentences.write_text(json.dumps(texts))
    options = {"minutes": 0, "methods": ("CuPL",), "prior": "equal", "random_state": 7}
    fitted = Classifier(str(tiny), sentences=str(sentences), **options).fit(paths, labels)
    fitted.save(tmp_path / "model")
    loaded = Classifier.load(tmp_path / "model", backbone=str(tiny))
    assert {name: getattr(loaded, name) for name in options} == options
    with one_line("the fit read sentences, which its folder does not hold: give Classifier"):
        loaded.partial_fit(paths[:1], labels[:1])
    loaded.sentences = str(sentences)
    loaded.partial_fit(paths[:1], labels[:1]).save(tmp_path / "more")
    again = Classifier.load(tmp_path / "more", backbone=str(tiny), prior="folder")
    assert (again.methods, again.prior) == (("CuPL",), "folder")
    record = tmp_path / "more/fit.json"  # as an earlier version wrote it
    record.write_text(
        record.read_text().replace('"request": {', '"request": {"coverage_by": "class",')
    )
    assert Classifier.load(tmp_path / "more", backbone=str(tiny)).coverage == "per-class"


@parametrize_with_checks([Classifier(backbone=None, minutes=0)])
@pytest.mark.thorough
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    """A hundred rows to learn from and others, with their labels."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[:700]
    return np.split(x[order], [200]), np.split(y[order], [200])


def classifier(**options):
    return Classifier(backbone=None, minutes=0, **options)


def test_features_are_classified_as_by_scikit_learn(digits):
    (x, other_x), (y, other_y) = digits
    model = classifier(methods=("LinearProbe",)).fit(x, y)
    rival = LogisticRegression(C=0.1, max_iter=1000).fit(x, y)
    assert model.score(other_x, other_y) == pytest.approx(rival.score(other_x, other_y), abs=0.002)
    assert model.estimate_.low < 100 * model.score(other_x, other_y) < model.estimate_.high
    assert [*model.leaderboard_["name"]] == ["LinearProbe C 0.1", "guessing"]
    assert model.leaderboard_["accuracy"][1] < 20
    sets = model.predict_sets(other_x)
    covered = [label in names for label, names in zip(other_y, sets, strict=True)]
    assert 0.85 < np.mean(covered) < 0.95
    twin = pickle.loads(pickle.dumps(model))
    assert np.array_equal(twin.predict_proba(other_x), model.predict_proba(other_x))


def test_more_rows_of_a_new_class(digits):
    (x, _), (y, _) = digits
    trained = {"methods": ("LinearProbe",)}
    model = classifier(**trained).fit(x[y != 7], y[y != 7])
    model.partial_fit(x[y == 7], y[y == 7])
    order = np.argsort(y == 7, kind="stable")
    at_once = classifier(**trained).fit(x[order], y[order])
    assert model.classes_.tolist() == [*range(10)]
    assert np.allclose(model.predict_proba(x), at_once.predict_proba(x), atol=1e-6)


def test_in_a_pipeline_and_a_search(digits):
    (x, _), (y, _) = digits
    pipeline = make_pipeline(StandardScaler(), classifier())
    search = GridSearchCV(pipeline, {"classifier__prior": ["folder", "equal"]}, cv=2).fit(x, y)
    assert search.best_score_ > 0.8


def test_no_name_is_more_probable_than_another():
    classifier = guessing(5, ["red", "green"], "cpu")
    logits = classifier.model_for()(ImageOutput(torch.randn(3, 5)))
    assert (logits.softmax(dim=1) == 0.5).all() and classifier.width == 5


@pytest.mark.parametrize(
    ("rows", "labels", "what"),
    [
        (np.zeros((4, 2)), [0, 1, 0], "inconsistent numbers of samples"),
        (np.full((4, 2), np.nan), [0, 1, 0, 1], "contains NaN"),
        (np.zeros((4, 2)), ["a", "b", np.nan, "a"], "image 2 of X has no label in y"),
        (np.zeros((4, 2)), ["a", None, "b", "a"], "image 1 of X has no label in y"),
        (np.zeros((4, 2)), [1, 1, 1, 1], "y has 1 class: a classifier needs two"),
        (np.zeros((4, 2)), [0.5, 1.5, 0.1, 2], "Unknown label type"),
    ],
)
def test_wrong_rows_are_value_errors(rows, labels, what):
    with pytest.raises(ValueError, match=what):
        classifier().fit(rows, labels)


def test_wrong_calls(digits, tmp_path):
    (x, _), (y, _) = digits
    with pytest.raises(NotFittedError):
        classifier().predict(x)
    model = classifier().fit(x, y)
    with pytest.raises(ValueError, match="X has 3 features, but Classifier is expecting 64"):
        model.predict(x[:, :3])
    with pytest.raises(ValueError, match="X has 3 features, but Classifier is expecting 64"):
        model.partial_fit(x[:, :3], y)
    with one_line("pickle it"):
        model.save(tmp_path / "model")


def test_numbers_with_too_large_squares_are_refused(digits):
    (x, _), (y, _) = digits
    model = classifier(methods=("VisionProbe",)).fit(x, y)
    for call in (lambda: model.predict(x * 1e20), lambda: classifier().fit(x * 1e20, y)):
        with pytest.raises(ValueError, match="X has numbers over 1e[+]15: scale it"):
            call()
