"""The estimator on features that were computed elsewhere."""

import pickle

import numpy as np
import pytest
import torch
from marks import one_line
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from clip import ImageOutput
from fit.estimator import Classifier
from fit.matrix import guessing

pytestmark = pytest.mark.slow


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


def test_numbers_whose_squares_are_too_large_are_refused(digits):
    (x, _), (y, _) = digits
    model = classifier(methods=("VisionProbe",)).fit(x, y)
    for call in (lambda: model.predict(x * 1e20), lambda: classifier().fit(x * 1e20, y)):
        with pytest.raises(ValueError, match="X has numbers over 1e[+]15: scale it"):
            call()
