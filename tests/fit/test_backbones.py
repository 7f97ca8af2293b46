"""A fit that chooses among several backbones, and heads on features before a projection."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import class_folders
from marks import of_json, one_line, to_json
from sklearn.gaussian_process.kernels import Matern
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import euclidean_distances
from tiny_models import FAMILIES, saved, small_timm, tiny_config

import clip
from clip import weights_sha256
from fit import choose
from fit import command as fit
from fit import features as sources
from fit import fit as story
from fit.candidates import KERNEL, VISION, Candidate
from fit.choose import Option, nested
from fit.estimator import Classifier
from fit.heads import Heads
from inference.classifier import PromptedClassifier
from inference.load import load
from inference.sample import Sample
from trainers.vision_probe import ridge

QUICK = "--methods", "GDA", "VisionProbe"


@pytest.fixture(scope="module")
def photos(eurosat, tmp_path_factory):
    return class_folders(eurosat, tmp_path_factory.mktemp("photos"), 5)


def option(logits):
    return Option(logits, lambda inside: {0: 1.0})


def test_the_choice_among_backbones_is_right_and_does_not_flatter(random_seed):
    rng = np.random.default_rng(random_seed)
    labels = np.tile(np.arange(4), 15)
    held = choose.folds(labels, np.arange(60), 0)
    sample = Sample.of(labels)

    def guesses():
        return option(rng.normal(size=(2, len(held), 60, 4)))

    knows = option(rng.normal(size=(2, len(held), 60, 4)) + 3 * np.eye(4)[labels])
    found, backbones = nested([guesses(), knows, guesses()], sample, held)
    assert (backbones == 1).all() and choose.correct(found[1], labels).mean() > 0.8
    outside = []
    for _ in range(10):
        found, backbones = nested([guesses() for _ in range(6)], sample, held)
        taken = np.take_along_axis(found, backbones[None, :, :, None], axis=0)[0]
        outside.append(choose.correct(taken, labels).mean())
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
def test_bad_backbones_print_one_line(options, words, fitting, photos, tmp_path):
    assert words in fitting(photos, *QUICK, "--backbone", *options).error
    assert not (tmp_path / "model").exists()


PROJECTIONS = {
    "CLIP": "visual.proj",
    "ResNet": "visual.attnpool.c_proj",
    "ConvNeXt": "visual.head.proj",
    "MobileCLIP-S": "",  # its trunk ends in one of its own
    "ViTamin": "visual.head.proj",
}


@pytest.mark.parametrize("rows", [8, 200])
def test_ridge_equals_scikit_learn_with_a_relative_penalty(rows):
    chance = np.random.default_rng(0)
    x = chance.normal(size=(rows, 20)) + 1
    targets = np.eye(3)[np.arange(rows) % 3]
    weight, bias = ridge(torch.from_numpy(x), [torch.from_numpy(targets)], 0.5)
    penalty = 0.5 * np.square(x - x.mean(axis=0)).sum(axis=1).mean()
    expected = Ridge(alpha=penalty).fit(x, targets)
    np.testing.assert_allclose(weight, expected.coef_, atol=1e-10)
    np.testing.assert_allclose(bias, expected.intercept_, atol=1e-10)


def test_a_kernel_probe_is_kernel_ridge_regression_of_scikit_learn(tiny):
    heads = Heads(PromptedClassifier.zero_shot(str(tiny), ["red", "green", "blue"]))
    features = torch.randn(25, 64, generator=torch.Generator().manual_seed(0)) + 1
    seen, new = features.split((20, 5))
    seen[7] = seen[3]  # a copy says nothing of how far apart images are
    labels = torch.arange(20) % 3
    found = heads.answers(Candidate(KERNEL, {"RIDGE": 0.3}), (seen, labels), new)
    x = features / features.norm(dim=1, keepdim=True)
    x = x - x[:20].mean(dim=0)
    rows, others = (x / x.norm(dim=1, keepdim=True)).double().split((20, 5))
    distances = euclidean_distances(rows)
    apart = np.sort(distances[distances > 1e-5])
    kernel = Matern(length_scale=apart[(len(apart) - 1) // 2], nu=0.5)
    targets = np.eye(3)[labels]
    shares = targets.mean(axis=0)
    regression = KernelRidge(alpha=0.3, kernel="precomputed")
    regression.fit(kernel(rows), targets - shares)
    expected = regression.predict(kernel(others, rows)) + shares
    np.testing.assert_allclose(found, expected, atol=2e-4)
    learned = heads.learned(Candidate(KERNEL), (seen, labels))
    alone = torch.cat([learned(row[None]) for row in seen])
    torch.testing.assert_close(alone, learned(seen), rtol=0, atol=2e-6)


def test_thin_rows_of_a_checkpoint_make_no_wide_tensor(tiny):
    heads = Heads(PromptedClassifier.zero_shot(str(tiny), ["red", "green"]))
    method = heads.method(Candidate(KERNEL), 0)
    thin = {"rows": torch.zeros(1000, 1), "of_rows": torch.zeros(1000, 2)}
    method.before_load({"state_dict": thin}, "a file")
    assert method.head.rows.shape == (0, 64)


@pytest.mark.parametrize("family", PROJECTIONS)
def test_heads_read_the_features_before_the_projection_of_every_tower(family, tmp_path):
    name = tiny_config(FAMILIES[family])["vision_cfg"].get("timm_model_name")
    folder = saved(family, tmp_path / "backbone")
    with small_timm(name):
        zero_shot = PromptedClassifier.zero_shot(str(folder), ["red", "green", "blue"])
        heads = Heads(zero_shot)
        images = torch.randn(6, 3, *zero_shot.cfg.INPUT.SIZE)
        before = heads.tower.image_output(images).feature
        features = zero_shot.model_for().image_output(images).feature
        torch.testing.assert_close(heads.inputs("ZeroshotCLIP", before), features)
        assert clip.projection(heads.clip) == PROJECTIONS[family]
        labels = torch.arange(6) % 3
        members = [(Candidate(one), 2.0) for one in (VISION, KERNEL)]
        members += [(Candidate("ZeroshotCLIP"), 0.1)]
        expected = sum(
            weight * heads.answers(one, (before, labels), before) for one, weight in members
        )
        (tmp_path / "model").mkdir()
        heads.classifier(members, (before, labels), {}).save(tmp_path / "model")
        ensemble = load(tmp_path / "model", backbone=str(folder))
        found = ensemble.logits(images)
        assert ensemble.method == "KernelEnsemble"
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("labelled", [0, 8])
def test_a_probe_of_an_older_version_is_read_if_it_had_no_unlabelled_images(
    labelled, tiny, tmp_path
):
    heads = Heads(PromptedClassifier.zero_shot(str(tiny), ["red", "green"]))
    seen = torch.randn(8, 64), torch.arange(8) % 2
    heads.classifier([(Candidate(VISION), 1.0)], seen, {}).save(tmp_path)
    config = of_json(tmp_path / "config.json")
    config["settings"]["LABELLED"] = labelled
    to_json(tmp_path / "config.json", config)
    if labelled:
        with one_line("LABELLED was removed: fit the images again"):
            load(tmp_path, backbone=str(tiny))
    else:
        load(tmp_path, backbone=str(tiny))
