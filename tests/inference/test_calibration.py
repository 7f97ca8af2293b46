"""Calibration equals published figures, keeps its promises on random splits, and refuses what it
cannot promise.
"""

import json
import math
import re

import numpy as np
import pytest
import torch
from marks import golden_cases, one_line
from published_ece import ece_below
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest

from common.errors import UsageError
from inference import calibration
from inference.calibrated import Calibration
from inference.calibration import Temperature, Threshold
from inference.sets import KINDS, Cluster, Sets, scores


def pytest_generate_tests(metafunc):
    golden_cases(metafunc, "temperature_scaling", "conformal")


def drawn(seed, n, c, scale, right, **_):
    """Logits and labels by the recipe of the golden files."""
    r = np.random.default_rng(seed)
    z = (scale * r.standard_normal((n, c))).astype(np.float32)
    return z, np.where(r.random(n) < right, z.argmax(axis=1), r.integers(0, c, n))


def test_temperature_equals_published(temperature_scaling):
    case = temperature_scaling
    z, labels = drawn(**case)
    logits = np.exp(case["before"]["log_scale"]) / 100 * z.astype(float)
    n = case["n_cal"]
    fitted = Temperature.fit(torch.from_numpy(logits[:n]), torch.from_numpy(labels[:n]))
    assert fitted.temperature == pytest.approx(case["temperature_optimum"], rel=1e-6)
    optimum = fitted.apply(logits)
    expected = case["optimum"]
    nll = -log_softmax(optimum, axis=1)[np.arange(len(labels)), labels]
    assert nll[:n].mean() == pytest.approx(expected["nll_calibration"], rel=1e-6)
    assert nll[n:].mean() == pytest.approx(expected["nll_test"], rel=1e-6)
    confidence = softmax(optimum[n:], axis=1).max(axis=1)
    found = ece_below(confidence, optimum[n:].argmax(axis=1) == labels[n:], 10)
    assert found == pytest.approx(expected["ece10_test"], abs=1e-5)


def measured(sets, labels, alpha):
    """The measures of the golden files."""
    hit = sets[np.arange(len(labels)), labels]
    by_class = {str(label): hit[labels == label].mean() for label in np.unique(labels)}
    return {
        "sizes": sets.sum(axis=1).tolist(),
        "coverage": pytest.approx(hit.mean(), rel=1e-7),
        "size": pytest.approx(sets.sum(axis=1).mean(), rel=1e-7),
        "empty": int((sets.sum(axis=1) == 0).sum()),
        "coverage_by_class": pytest.approx(by_class, rel=1e-6),
        "covgap": pytest.approx(
            100 * np.mean([abs(value - 1 + alpha) for value in by_class.values()]), rel=1e-6
        ),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_sets_equal_published(conformal, kind):
    case = conformal
    n = conformal["n_cal"]
    z, labels = drawn(**case)
    p = softmax(z.astype(float) / case["epsilon"], axis=1)
    drawn_u = np.random.default_rng(case["seed"] + 100).random(n, dtype=np.float32)
    test_u = np.random.default_rng(case["seed"] + 200).random(
        (len(z) - n, case["c"]), dtype=np.float32
    )
    raps = case["lambda"], case["k_reg"]
    found = scores(p[:n], kind, 1 - drawn_u[:, None], raps)
    of_labels = found[np.arange(n), labels[:n]]
    expected = case[kind]
    assert of_labels[:8] == pytest.approx(expected["calibration_scores_first8"], abs=1e-5)
    of_test = scores(p[n:], kind, test_u, raps)
    assert of_test[0] == pytest.approx(expected["scores_of_first_test_image"], abs=1e-5)
    exact = expected["exact"]
    quantile = Sets.of_scores(found, labels[:n], kind).quantile(1 - case["alpha"])
    infinite = exact["q"] in (None, "inf", "Infinity")
    assert quantile == pytest.approx(math.inf if infinite else exact["q"], abs=1e-5)
    inside = of_test <= quantile
    got = measured(inside, labels[n:], case["alpha"])
    assert got == {key: exact[key] for key in got}
    assert [np.flatnonzero(row).tolist() for row in inside[:10]] == exact["sets_first10"]


# Promises


@pytest.fixture(scope="module")
def population():
    """Logits of twice the size that fits the labels, so that the model is too sure."""
    r = np.random.default_rng(5)
    z = 8 * r.standard_normal((3000, 10))
    return z, np.array([r.choice(10, p=p) for p in softmax(z / 2, axis=1)])


# Wrong labels have a probability below 1e-16, or none
@pytest.mark.parametrize("scale", [1, 20, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_sets_cover_what_is_asked_over_random_splits(population, kind, scale):
    z = scale * population[0]
    labels = population[1]
    covered = []
    for seed in range(100):
        mine, others = np.split(np.random.default_rng(seed).permutation(len(z)), [500])
        sets = Sets.fit(z[mine], labels[mine], kind).apply(z[others], 0.9)
        covered.append(100 * sets[np.arange(len(others)), labels[others]].mean())
    assert np.mean(covered) == pytest.approx(90, abs=0.5)


def test_sets_by_class_cover_hard_classes_too():
    rng = np.random.default_rng(0)
    hardness = np.array([0.2, 1, 2, 3])  # of four classes; the last one has few images

    def draw(counts):
        labels = np.repeat(np.arange(4), counts)
        noise = rng.normal(size=(len(labels), 4)) * hardness[labels, None]
        return 2 * np.eye(4)[labels] + noise, labels

    z, labels = draw([200, 200, 200, 8])
    test_z, test_labels = draw([2000] * 4)
    covered = {}
    for fit in (Sets.fit, Sets.fit_by_class):
        inside = fit(z, labels).apply(test_z, 0.9)[np.arange(8000), test_labels]
        covered[fit.__name__] = [inside[test_labels == label].mean() for label in range(4)]
    assert min(covered["fit"][:3]) < 0.8 and max(covered["fit"]) > 0.98
    assert all(0.85 < share < 0.95 for share in covered["fit_by_class"][:3])
    by_class = Sets.fit_by_class(z, labels)
    assert by_class.label_scores == Sets.fit(z, labels).label_scores
    assert [one.classes for one in by_class.clusters] == [(0,), (1,), (2,)]
    shared = Sets.fit_by_class(*draw([200, 200, 15, 15]))
    assert shared.clusters[2].classes == (2, 3) and len(shared.clusters[2].label_scores) == 30


def test_a_threshold_keeps_the_asked_error_in_the_promised_share_of_splits(population):
    z, labels = population
    wrong = z.argmax(axis=1) != labels
    broken = []
    answered = []
    for seed in range(200):
        mine, others = np.split(np.random.default_rng(seed).permutation(len(z)), [600])
        threshold = Threshold.fit(z[mine], labels[mine], error=0.1, confidence=0.9)
        given = threshold.apply(z[others])
        broken.append(wrong[others][given].mean() > 0.1)
        answered.append(given.mean())
    assert np.mean(broken) <= 0.1 and np.mean(answered) > 0.3


def test_a_refused_error_says_the_least_whole_percentage_that_is_promised(population):
    z, labels = population[0][:100], population[1][:100]
    with pytest.raises(UsageError) as refused:
        Threshold.fit(z, labels, 0.001)
    percent, answered = map(
        int, re.findall(r"ask for (\d+)%, which answers (\d+) of 100", refused.value.remedy)[0]
    )
    assert Threshold.fit(z, labels, percent / 100).answered == answered
    with pytest.raises(UsageError):
        Threshold.fit(z, labels, (percent - 1) / 100)
    with one_line("cannot promise an error of at most 5%", "give more images"):
        Threshold.fit(z, z.argmin(axis=1), 0.05)


def test_a_threshold_separates_probabilities_near_one(population):
    z, labels = population
    plain = Threshold.fit(z, labels, 0.1)
    extreme = Threshold.fit(500 * z, labels, 0.1)
    assert (softmax(500 * z, axis=1).max(axis=1) == 1).mean() > 0.8
    assert 0 < plain.answered < len(z)
    assert extreme.answered == pytest.approx(plain.answered, rel=0.1)
    least = 1 / (1 + math.exp(-plain.least_log_odds))
    assert (plain.apply(z) == (softmax(z, axis=1).max(axis=1) > least)).all()
    # Of a single class
    assert Threshold.fit(z[:, :1], np.zeros(len(z), dtype=int), 0.1).apply(z[:, :1]).all()


def test_bound_equals_clopper_and_pearson():
    for k, n in ((0, 10), (3, 40), (10, 10)):
        interval = binomtest(k, n).proportion_ci(0.9, "exact")  # two-sided: 5% above
        assert calibration.upper_bound(k, n, 0.95) == pytest.approx(interval.high)
    fewest = calibration.fewest_images(0.01, 0.95)
    assert (
        calibration.upper_bound(0, fewest, 0.95)
        <= 0.01
        < calibration.upper_bound(0, fewest - 1, 0.95)
    )


def test_few_images_promise_little(population):
    # All of them are right
    every = population[0][:299]
    right = every.argmax(axis=1)
    z = every[:10]
    labels = right[:10]
    with one_line("10 images cannot promise an error of at most 1%", "give at least 299"):
        Threshold.fit(z, labels, error=0.01)
    assert Threshold.fit(every, right, error=0.01).answered == 299
    sets = Sets.fit(z, labels)
    assert sets.apply(population[0], 0.95).all()  # needs 19 images
    assert sets.quantile(1e-13) == sets.label_scores[0]
    assert Temperature.fit(z, labels).temperature == 1  # no image says how sure is too sure
    assert Temperature.fit(z, z.argmin(axis=1)).temperature == calibration.HOTTEST


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        ([[1.0, math.nan], [0, 1]], [0, 1], "not finite"),
        ([[1.0, 0], [0, 1]], [0, 2], "numbers of the 2 classes"),
        ([[1.0, 0], [0, 1]], [0, -1], "numbers of the 2 classes"),
        ([[1.0, 0], [0, 1]], [0], "numbers of the 2 classes"),
        (np.empty((0, 2)), [], "one image or more"),
    ],
)
def test_wrong_arrays_are_refused(logits, labels, words):
    for fit in (Temperature.fit, Sets.fit, Threshold.fit):
        with one_line(words):
            fit(np.array(logits), np.array(labels, dtype=int))


def test_a_fit_is_read_as_it_was_written(population):
    z, labels = (rows[:400] for rows in population)
    parts = Temperature.fit(z, labels), Sets.fit(z, labels, "raps"), Threshold.fit(z, labels, 0.4)
    names = tuple(f"class {number}" for number in range(10))
    fit = Calibration(names, 400, "0" * 64, "a folder", *parts)
    content = json.loads(json.dumps(fit.to_json()))
    assert Calibration.from_json(content) == fit
    with pytest.raises(ValueError, match="another content"):
        Calibration.from_json(content | {"sha256": "1" * 64})
    del content["content_sha256"]  # as in files of earlier versions
    scores = content["sets"] | {"label_scores": ["1"] * 400}
    changes = [{"images": "400"}, {"images": 399}, {"sets": []}, {"sets": scores}]
    changes += [{"source": "\n"}, {"class_names": [1]}, {"class_names": "ten chars."}]
    changes += [{"temperature": one} for one in ({"temperature": -1}, {"t": 1}, {})]
    changes += [{"threshold": content["threshold"] | {"error": 2}}]
    cluster = {"classes": [1, 9], "label_scores": [0.5, 2.0]}
    sets = content["sets"] | {"clusters": [cluster]}
    found = Calibration.from_json(content | {"sets": sets}).sets.clusters
    assert found == [Cluster((1, 9), (0.5, 2.0))]
    wrong = {"classes": [10]}, {"classes": [-1]}, {"label_scores": [2, 1]}, {"label_scores": ["1"]}
    changes += [{"sets": sets | {"clusters": [cluster | one]}} for one in wrong]
    for damaged in ([], None, {}, *(content | change for change in changes)):
        with pytest.raises(ValueError):
            Calibration.from_json(damaged)
