"""NegLabel equals its published code, and detects other images in a run, also of test-time
methods.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn import results
from harness import drawn, drawn_features
from marks import case_of, golden, one_line

from measures import metrics
from runs import neglabel
from trainers.base.prompted import normalize

BASE = ("DATASET.SUBSAMPLE_CLASSES", "base")


def pytest_generate_tests(metafunc):
    golden(metafunc, "figures", lambda content: case_of(content).get("trainer") == "NegLabel")


def test_words_and_scores_equal_published(figures):
    f = figures["case"]["features"]
    cfg = figures["case"]["cfg"]
    centre = drawn(12, 2, f["dim"])
    dim = f["dim"]
    count = f["ood_images"]
    known, texts = drawn_features(f)
    unknown = normalize(
        centre[0]
        + f["image_mean"] * drawn(22, count, dim)
        + f["image_noise"] * drawn(21, count, dim)
    )
    words = normalize(
        centre[1] + f["negative_noise"] * drawn(20, f["nouns"] + f["adjectives"], dim)
    )
    nouns = words[: f["nouns"]]
    adjectives = words[f["nouns"] :]
    chosen = neglabel.select(texts, nouns, adjectives, cfg["fraction"], cfg["percentile"])
    assert chosen == (figures["selected_nouns"], figures["selected_adjectives"])
    kept = torch.cat([nouns[chosen[0]], adjectives[chosen[1]]])
    for key, images in (("id", known), ("ood", unknown)):
        logits = 100 * images @ texts.T
        of_words = 100 * images @ kept.T
        found = neglabel.score(logits, of_words, figures["permutation"], cfg["groups"], cfg["t"])
        assert found.numpy() == pytest.approx(figures[f"scores_{key}"], abs=1e-5)
        whole = neglabel.score(logits, of_words, range(len(kept)), 1, cfg["t"])
        assert whole.numpy() == pytest.approx(figures[f"scores_{key}_one_group"], abs=1e-5)
    found = metrics.detection(figures["scores_id"], figures["scores_ood"])["auroc"]
    assert found == pytest.approx(100 * figures["auroc"], abs=1e-4)


def test_cosines_have_the_published_scale_with_any_model():
    features = normalize(
        torch.from_numpy(np.random.default_rng(0).standard_normal((9, 8), dtype=np.float32))
    )
    classes, words, images = features.split(3)

    def scores(scale):
        own = SimpleNamespace(
            model=SimpleNamespace(scale=scale), features=words, order=[2, 0, 1], groups=3
        )
        return neglabel.NegativeWords.score(own, scale * images @ classes.T, images)

    torch.testing.assert_close(scores(29.4), scores(100.0), atol=1e-6, rtol=0)


def test_word_lists(tmp_path):
    (tmp_path / "nouns").write_text("tree\n\nhouse\ntree\nred\n")
    (tmp_path / "adjectives").write_text("red\nold\n")
    files = [str(tmp_path / name) for name in ("nouns", "adjectives")]
    assert neglabel.read_words(files) == (["tree", "house", "red"], ["old"])
    assert neglabel.read_words(files[:1]) == (["tree", "house", "red"], [])
    with one_line("TEST.OOD_WORDS has 3 files"):
        neglabel.read_words([*files, "more"])
    with one_line(str(tmp_path / "none")):
        neglabel.read_words([str(tmp_path / "none")])


@pytest.mark.slow
def test_a_run_has_the_requested_score(run, launch, argv, tmp_path):
    asked = (*BASE, "TEST.OOD_SCORES", "['MCM', 'NegLabel']")
    folder = run("out", *asked, trainer="ZeroshotCLIP", options=["--ood", "new"])
    (found,) = results(folder)["ood"]
    assert (
        list(found["scores"]) == ["MCM", "NegLabel"]
        and 0 <= found["scores"]["NegLabel"]["auroc"] <= 100
    )
    assert results(folder)["nll"] == pytest.approx(
        results(run("alone", *BASE, trainer="ZeroshotCLIP"))["nll"]
    )
    (tmp_path / "few").write_text("tree\nhouse\n")
    words = ("TEST.OOD_WORDS", f"['{tmp_path / 'few'}']")
    done = launch(
        *argv("ZeroshotCLIP", *asked, *words, output="few words", options=["--ood", "new"])
    )
    assert "NegLabel would keep 0 of 2 words" in done.error


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TPT", "ZERO"])
def test_test_time_methods_score_each_image_alone(method, run):
    few = (*BASE, f"TRAINER.{method}.VIEWS", 4, "DATALOADER.NUM_WORKERS", 0)
    folder = run("out", *few, trainer=method, config="small", options=["--ood", "new"])
    (found,) = results(folder)["ood"]
    assert list(found["scores"]) == ["MCM", "MaxLogit", "Energy", "Entropy"]
    assert (
        results(folder)["accuracy"]
        == results(run("alone", *few, trainer=method, config="small"))["accuracy"]
    )
