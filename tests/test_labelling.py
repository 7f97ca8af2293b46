"""Which images of a pool to label next: what published code chooses."""

from dataclasses import replace

import numpy as np
import pytest
from golden_inputs import drawn
from labelling_compared import (
    PoolWithTexts,
    badge,
    class_guided,
    dropquery,
    entropy,
    pcoreset,
    probcover,
)
from marks import golden_cases
from pandas import DataFrame
from sklearn.metrics.pairwise import euclidean_distances

from benchmarks import label_forecast
from benchmarks.labelling import area, imbalanced, leads
from measures.labelling import (
    METHODS,
    Pool,
    auto_radius,
    choose,
    herding,
    k_center,
    margin,
    pcb,
    typiclust,
    u_herding,
    uncertain,
    whitened,
)


def confidence(pool):
    return -np.exp(pool.logs.max(axis=1))


def adaptive_radius(pool):
    """UHerding's: the smallest distance between two labelled images."""
    rows = pool.features[list(pool.labelled)]
    apart = euclidean_distances(rows, rows)[np.triu_indices(len(rows), 1)]
    return float(apart[apart > 0].min())


SCORES = {"margin": margin, "entropy": entropy, "confidence": confidence}


def pytest_generate_tests(metafunc):
    golden_cases(metafunc, "cases")


def pool_of(case):
    """The pool of a file, and the labels of all images."""
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
    pool = PoolWithTexts(used, logits, labelled, seed, labels[labelled], texts)
    return pool, labels, rows


def test_the_same_images_are_chosen(cases):
    figures = cases
    case = figures["case"]
    if case["method"] == "area":
        assert area(figures["labels"], figures["accuracy"]) == pytest.approx(figures["area"])
        return
    if case["method"] == "imbalanced":
        rng = np.random.default_rng(case["label_seed"])
        labels = rng.integers(0, case["classes"], case["n"])
        found = imbalanced(labels, case["cfg"]["largest_class"], case["cfg"]["seed"])
        assert found.tolist() == figures["pool"]
        return
    pool, labels, rows = pool_of(case)
    close = np.testing.assert_allclose
    close(rows[:3, :8], np.array(figures["features_first8"])[:, :8], atol=1e-6)
    close(pool.logits[:3], figures["logits_first3"], atol=1e-3)
    if case["method"] == "loop":
        assert loop(pool, labels, case) == (figures["rounds"], pytest.approx(figures["accuracy"]))
        return
    found = CHOOSE[case["method"]](pool, case["budget"], case["cfg"], figures)
    assert list(found) == figures["selected"]


def loop(pool, labels, case):
    """The rounds of a learner that adds labelled features to its texts."""
    cfg = case["cfg"]
    select = CHOOSE["uncertainty" if cfg["select"] == "margin" else cfg["select"]]
    labelled, rounds, accuracy = [], [], []
    texts, logits = pool.texts, pool.logits
    for _ in range(cfg["rounds"]):
        now = Pool(pool.features, logits, labelled)
        picks = select(now, case["budget"], {"score": "margin"} | cfg, {})
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
        radius = auto_radius(pool, budget) if radius == "auto" else adaptive_radius(pool)
        assert radius == pytest.approx(figures["radius"], abs=1e-5)
    return radius


def by_herding(pool, budget, cfg, figures):
    return herding(pool, budget, radius_of(pool, budget, cfg, figures))


def by_u_herding(pool, budget, cfg, figures):
    radius = radius_of(pool, budget, cfg, figures)
    flat = replace(pool, logits=pool.logits / cfg.get("temperature", 1.0))
    return u_herding(flat, budget, radius)


def by_typiclust(pool, budget, cfg, figures):
    return typiclust(pool, budget, np.array(figures["clusters"]))


def by_k_center(pool, budget, cfg, figures):
    return k_center(pool, budget, first=None if len(pool.labelled) else 0)


def by_probcover(pool, budget, cfg, figures):
    return probcover(pool, budget, cfg.get("delta") or figures["delta"])


def by_dropquery(pool, budget, cfg, figures):
    found = dropquery(pool, budget, figures.get("start"), cfg["dropout"])
    found = found[: figures["candidates"]]
    rest = np.setdiff1d(np.flatnonzero(pool.free), found)
    filled = np.random.RandomState(cfg["seed"]).choice(rest, budget - len(found), replace=False)
    return [*found, *filled]


def by_pcb(pool, budget, cfg, figures):
    candidates = np.flatnonzero(pool.free).tolist()
    if cfg["first"] == "entropy":
        candidates = uncertain(pool, int(cfg["gamma"] * len(pool.features)), entropy)
    assert candidates == figures["candidates"]
    return pcb(pool, budget, candidates)


CHOOSE = {
    "uncertainty": lambda pool, budget, cfg, _: uncertain(pool, budget, SCORES[cfg["score"]]),
    "k-center": by_k_center,
    "TypiClust": by_typiclust,
    "ProbCover": by_probcover,
    "MaxHerding": by_herding,
    "UHerding": by_u_herding,
    "BADGE": lambda pool, budget, *_: badge(pool, budget),
    "DropQuery": by_dropquery,
    "PCB": by_pcb,
    "class-guided": lambda pool, budget, _, figures: class_guided(
        pool, budget, np.array(figures["clusters"])
    ),
    "PCoreSet": lambda pool, budget, *_: pcoreset(pool, budget),
}


def pool(images=400, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((5, 16))
    labels = rng.integers(0, 5, images)
    rows = means[labels] + rng.standard_normal((images, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return PoolWithTexts(rows.astype(np.float32), rows @ means.T, seed=seed, texts=means)


@pytest.mark.parametrize("method", METHODS)
def test_each_image_is_asked_for_once(method):
    given = pool()
    labelled = []
    for budget in (3, 20, 30, 347):
        picks = choose(given.features, given.logits, labelled, budget, 1, method)
        assert len(picks) == budget
        assert picks == choose(given.features, given.logits, labelled, budget, 1, method)
        labelled += picks
    assert sorted(labelled) == list(range(400))
    with pytest.raises(ValueError, match="not finite"):
        choose(np.full((2, 2), np.inf), np.zeros((2, 2)), [], 1)
    with pytest.raises(ValueError, match="1 labels are more than 0 images"):
        choose(given.features, given.logits, labelled, 1, 1, method)


@pytest.mark.parametrize("select", [badge, class_guided, dropquery, pcoreset, probcover])
def test_methods_for_comparison_choose_as_many_as_asked(select):
    given = pool()
    for labelled in ([], list(range(30))):
        picks = select(given.after(labelled), 25)
        assert len(set(picks)) == 25 and not set(picks).intersection(labelled)


def test_typical_images_are_asked_for_and_then_unsure_ones():
    given = pool()
    method = "typical-then-uncertain"
    first = choose(given.features, given.logits, [], 10, method=method)
    assert first == typiclust(given, 10)
    labelled = list(range(20))
    second = choose(given.features, given.logits, labelled, 10, method=method)
    assert second == u_herding(given.after(labelled), 10)


def test_the_default_covers_features_whose_directions_count_the_same():
    given = pool()
    rows = given.features * np.linspace(1, 8, 16, dtype=np.float32) + 5
    even = whitened(rows)
    assert even.dtype == np.float32 and np.linalg.norm(even, axis=1) == pytest.approx(1)
    assert whitened(rows.astype(np.float16)) == pytest.approx(even, abs=0.02)
    before, after = (np.linalg.cond(np.cov(one.T)) for one in (rows, even))
    assert after < before / 5
    picks = choose(rows, given.logits, [3], 10)
    assert picks == herding(Pool(even, given.logits, [3]), 10)
    assert picks != herding(Pool(rows, given.logits, [3]), 10)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_copies_of_an_image_do_not_end_a_choice():
    rows = np.repeat(np.eye(2, 4, dtype=np.float32), 30, axis=0)
    for method in METHODS:
        assert len(set(choose(rows, rows, [0, 31], 40, 0, method))) == 40


def test_a_method_is_compared_with_random_draws_of_the_same_pools():
    accuracies = {"random": ([10.0, 20.0], [12.0, 20.0]), "margin": ([13.0, 19.0], [17.0, 18.5])}
    records = [
        {"pool": "digits", "seed": seed, "method": method, "labels": [5, 10]}
        | dict.fromkeys(("SSText", "logistic"), accuracies)
        for method, pools in accuracies.items()
        for seed, accuracies in enumerate(pools)
    ]
    *each, last = leads(DataFrame(records), ["digits"], "margin")
    # On average 1 and 1.75 points more: 1.375 / 0.375
    assert each[0] == "margin, digits, SSText: +3.7 standard errors"
    assert last == "margin: below random in 2 cells, by -1.2 at most"


def test_forecasts_are_compared_with_what_came(monkeypatch):
    monkeypatch.setattr(label_forecast, "ROUNDS", 3)

    def one(truth, added=None, width=20.0):
        return {"truth": truth, "added": added, "width": width, "next_width": 15.0}

    pools = [
        [{"truth": 40.0, "added": None}, one(50.0, 4.0), one(53.0, 2.0, 16.0)],
        [one(30.0, 6.0), one(40.0, 3.0, 18.0), one(42.0, 1.0, 14.0)],
    ]
    records = DataFrame({"pool": "EuroSAT", "rounds": pools})
    (table,) = label_forecast.table(records)
    assert table.splitlines()[2:] == [
        "| EuroSAT | 50 | 1 of 2 | 6.0 | 10.0 | 15.0 | 18.0 |",
        "| EuroSAT | 100 | 2 of 2 | 3.5 | 2.5 | 15.0 | 15.0 |",
    ]
