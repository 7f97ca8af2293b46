"""The verbs of scikit-learn on a fit."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from common.errors import UsageError
from fit.estimator import Classifier
from inference.models import load
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


def test_a_fitted_classifier_answers_as_the_model_that_it_saves(model, images, tiny, tmp_path):
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
    assert model.leaderboard_["accuracy"].is_monotonic_decreasing and len(model.leaderboard_) == 4
    assert "of 100 new images will be right" in model.report_

    model.save(tmp_path / "model")
    with pytest.raises(UsageError, match="choose a new folder"):
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


def test_a_folder_needs_no_labels(images, tiny, eurosat):
    model = quick(tiny).fit(eurosat / "eurosat/2750")
    assert model.classes_.tolist() == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("X", "y", "what"),
    [
        (["a.png"], ["a", "b"], "X has 1 images, and y has 2 labels"),
        (["a.png", "b.png"], ["red_fox", "red fox"], "are one class name"),
        ([np.zeros((3, 8, 8))] * 2, ["a", "b"], "of type float64 and shape"),
    ],
)
def test_wrong_arguments_are_value_errors(X, y, what, tiny):
    with pytest.raises(ValueError, match=what):
        quick(tiny).fit(X, y)


def test_a_missing_image_or_folder_is_one_line(tiny, tmp_path):
    with pytest.raises(UsageError, match="there is no image 'gone.png': check its path"):
        quick(tiny).fit(["gone.png", "lost.png"], ["a", "b"])
    with pytest.raises(UsageError, match="has no fit.json: give the folder of a fit"):
        Classifier.load(tmp_path / "nowhere")
