"""Calibration and detection of other images: equal to published code, and to scikit-learn where it
has them.
"""

import numpy as np
import pytest
from marks import golden_cases
from published_ece import ece_below
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score

from measures import metrics


def pytest_generate_tests(metafunc):
    golden_cases(metafunc, "calibration", "ood_metrics", "openworldauc")


def drawn(case):
    """Probabilities and labels by the recipe of the golden file."""
    r = np.random.default_rng(case["seed"])
    exponents = np.exp(case["scale"] * r.standard_normal((case["n"], case["c"])))
    p = exponents / exponents.sum(axis=1, keepdims=True)
    guessed = r.random(case["n"]) >= case["right"]
    return p, np.where(guessed, r.integers(0, case["c"], case["n"]), p.argmax(axis=1))


def predictions(p, labels):
    classes = np.argsort(-p, axis=1, kind="stable")[:, :5]
    log_p = np.log(p[np.arange(len(p)), labels])
    brier = ((p - np.eye(p.shape[1])[labels]) ** 2).sum(axis=1)
    return labels, classes, np.take_along_axis(p, classes, axis=1), log_p, brier


def test_calibration_equals_published_code(calibration):
    case = calibration
    if "seed" in case:
        p, labels = drawn(case)
        assert (
            p[0] == pytest.approx(case["first_row"], rel=1e-6)
            and labels[:10].tolist() == case["labels_first10"]
        )
        found = metrics.of_predictions(*predictions(p, labels))
        assert (found["nll"], found["brier"]) == pytest.approx(
            (case["nll"], case["brier"]), rel=1e-6
        )
        assert found["ece"] == pytest.approx(100 * case["ece_bins_closed_above"]["15"], abs=1e-5)
        assert found["adaptive_ece"] == pytest.approx(100 * case["ace"]["15"], abs=1e-5)
        confidence = p.max(axis=1)
        correct = p.argmax(axis=1) == labels
    else:
        confidence = np.array(case["confidences"])
        correct = np.array(case["correct"], dtype=bool)
    assert (confidence.mean(), correct.mean()) == pytest.approx(
        (case["confidence"], case["accuracy"]), rel=1e-6
    )
    for bins in (10, 15, 20):
        key = str(bins)
        assert metrics.ece(confidence, correct, bins) == pytest.approx(
            case["ece_bins_closed_above"][key], abs=1e-6
        )
        below = ece_below(confidence, correct, bins)
        assert below == pytest.approx(case["ece_bins_closed_below"][key], abs=1e-6)
        assert metrics.adaptive_ece(confidence, correct, bins) == pytest.approx(
            case["ace"][key], abs=1e-6
        )
        largest = metrics.gaps(confidence, correct, bins).max()
        assert largest == pytest.approx(case["mce_weighted"][key], abs=1e-6)


def test_calibration_of_a_nan_probability_is_nan():
    assert np.isnan(metrics.ece([np.nan, 0.5], [True, False]))


def test_measures_are_those_of_scikit_learn():
    p, labels = drawn({"seed": 5, "n": 300, "c": 9, "scale": 1.5, "right": 0.5})
    labels = np.where(labels == 3, 4, labels)  # a class without images
    found = metrics.of_predictions(*predictions(p, labels))
    known = np.arange(9)
    assert found["top5_accuracy"] == pytest.approx(
        100 * top_k_accuracy_score(labels, p, k=5, labels=known)
    )
    assert found["mean_class_accuracy"] == pytest.approx(
        100 * balanced_accuracy_score(labels, p.argmax(axis=1))
    )
    assert found["nll"] == pytest.approx(log_loss(labels, p, labels=known))


def test_detection_equals_published_code(ood_metrics):
    case = ood_metrics
    known = np.array(case["id"])
    unknown = np.array(case["ood"])
    keys = "auroc", "aupr", "fpr95"
    assert metrics.detection(known, unknown) == pytest.approx(
        {k: 100 * case[k] for k in keys}, abs=1e-5
    )
    other = metrics.detection(-unknown, -known)  # the others are positive
    assert other == pytest.approx(
        {k: 100 * case[k if k == "auroc" else f"{k}_ood_positive"] for k in keys}, abs=1e-5
    )


def test_certain_and_right_predictions_have_a_loss_of_zero():
    found = metrics.of_predictions([0], [[0]], [[1.0]], [0.0], [0.0])
    assert str(found["nll"]) == str(found["brier"]) == "0.0"  # not -0.0


def test_accuracy_by_class_has_no_rounding_error():
    right = [35, 5, 23, 29, 34, 21, 15, 12]  # of 40 images of each class
    labels = np.repeat(np.arange(8), 40)
    predicted = np.concatenate(
        [np.where(np.arange(40) < n, label, 8) for label, n in enumerate(right)]
    )
    found = metrics.of_predictions(
        labels, predicted[:, None], np.ones((320, 1)), np.zeros(320), np.zeros(320)
    )
    assert found["mean_class_accuracy"] == 100 * sum(right) / 320


def test_openworld_auc_equals_published(openworldauc):
    case = openworldauc
    if "seed" in case:
        r = np.random.default_rng(case["seed"])
        base = np.round(
            case["shift"] + case["spread"] * r.standard_normal(case["n_base"]), case["decimals"]
        )
        new = np.round(case["spread"] * r.standard_normal(case["n_new"]), case["decimals"])
        right = (
            r.random(case["n_base"]) < case["base_right"],
            r.random(case["n_new"]) < case["new_right"],
        )
        assert base[:10].tolist() == case["base_first10"]
    else:
        base = case["base_scores"]
        new = case["new_scores"]
        right = case["base_correct"], case["new_correct"]
    found = metrics.openworld_auc(base, new, *right)
    expected = {"openworld_auc": "openworldauc", "h": "harmonic_mean"}
    for key, value in found.items():
        assert value == pytest.approx(100 * case[expected.get(key, key)], abs=1e-6)
