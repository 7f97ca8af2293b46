"""Which images of a pool to label next: what published code chooses."""

import numpy as np
import pytest
from harness import drawn
from marks import golden_cases

from measures.labelling import METHODS, Pool, auto_radius, choose_images, herding, k_center


def pytest_generate_tests(metafunc):
    golden_cases(metafunc, "cases", chosen=lambda figures: is_chosen(figures["case"]))


def is_chosen(case):
    """Whether the product has the rule of a case."""
    return case["cfg"].get("select", case["method"]) in CHOOSE if "cfg" in case else False


def pool_of(case):
    """The pool of a file; the labels, the texts and the unit features of all images."""
    f = case["features"]
    seeds = f["seeds"]
    dim = f["dim"]
    labels = np.random.default_rng(f["label_seed"]).integers(0, f["classes"], f["n"])
    centre = drawn(seeds["G"], 2, dim).numpy()
    means = drawn(seeds["M"], f["classes"], dim).numpy()
    noise = drawn(seeds["Z"], f["n"], dim).numpy()
    image = f["image_scale"] * (
        centre[0] + f["image_mean"] * means[labels] + f["image_noise"] * noise
    )
    noise = drawn(seeds["T"], f["classes"], dim).numpy()
    text = f["text_scale"] * (centre[1] + f["text_mean"] * means + f["text_noise"] * noise)
    rows = image / np.linalg.norm(image, axis=1, keepdims=True)
    texts = text / np.linalg.norm(text, axis=1, keepdims=True)
    logits = f["logit_scale"] * rows @ texts.T
    used = rows if case["cfg"].get("normalise", True) else image
    seed = case["cfg"].get("mask_seed", case["cfg"].get("seed", 0))
    labelled = case["labelled"]
    return Pool(used, labelled, seed), logits, labels, texts, rows


def test_the_same_images_are_chosen(cases):
    figures = cases
    case = figures["case"]
    pool, logits, labels, texts, rows = pool_of(case)
    close = np.testing.assert_allclose
    close(rows[:3, :8], np.array(figures["features_first8"])[:, :8], atol=1e-6)
    close(logits[:3], figures["logits_first3"], atol=1e-3)
    if case["method"] == "loop":
        assert loop(pool, logits, labels, texts, case) == (
            figures["rounds"],
            pytest.approx(figures["accuracy"]),
        )
        return
    found = CHOOSE[case["method"]](pool, case["budget"], case["cfg"], figures)
    assert list(found) == figures["selected"]


def loop(pool, logits, labels, texts, case):
    """The rounds of a learner that adds labelled features to its texts."""
    cfg = case["cfg"]
    select = CHOOSE[cfg["select"]]
    labelled, rounds, accuracy = [], [], []
    for _ in range(cfg["rounds"]):
        now = Pool(pool.features, labelled)
        picks = select(now, case["budget"], cfg, {})
        rounds.append(picks)
        labelled = labelled + picks
        weights = cfg["prior"] * texts
        for place in labelled:
            weights[labels[place]] += pool.features[place]
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        logits = case["features"]["logit_scale"] * pool.features @ weights.T
        accuracy.append((logits.argmax(axis=1) == labels).mean())
    return rounds, accuracy


def radius_of(pool, budget, cfg, figures):
    radius = cfg.get("radius", 1.0)
    if isinstance(radius, str):
        radius = auto_radius(pool, budget)
        assert radius == pytest.approx(figures["radius"], abs=1e-5)
    return radius


def by_herding(pool, budget, cfg, figures):
    return herding(pool, budget, radius_of(pool, budget, cfg, figures))


def by_k_center(pool, budget, cfg, figures):
    if pool.labelled:
        return k_center(pool, budget)
    return [0, *k_center(pool.after([0]), budget - 1)]


CHOOSE = {"k-center": by_k_center, "MaxHerding": by_herding}


def pool(images=400, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((5, 16))
    labels = rng.integers(0, 5, images)
    rows = means[labels] + rng.standard_normal((images, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Pool(rows.astype(np.float32), seed=seed)


@pytest.mark.parametrize("method", METHODS)
def test_each_image_is_asked_for_once(method):
    given = pool()
    labelled = []
    for budget in (3, 20, 30, 347):
        picks = choose_images(given.features, labelled, budget, 1, method)
        assert len(picks) == budget
        assert picks == choose_images(given.features, labelled, budget, 1, method)
        labelled += picks
    assert sorted(labelled) == list(range(400))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_copies_of_an_image_do_not_end_a_choice():
    rows = np.repeat(np.eye(2, 4, dtype=np.float32), 30, axis=0)
    for method in METHODS:
        assert len(set(choose_images(rows, [0, 31], 40, 0, method))) == 40
