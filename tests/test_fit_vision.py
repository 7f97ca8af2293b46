"""Heads of a fit that read image features before the projection, without texts."""

import numpy as np
import pytest
import torch
from marks import of_json, one_line, to_json
from sklearn.gaussian_process.kernels import Matern
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import euclidean_distances
from tiny_models import FAMILIES, saved, small_timm, tiny_config

import clip
from fit.candidates import KERNEL, VISION, Candidate
from fit.heads import Heads
from inference.classifier import PromptedClassifier
from inference.models import load
from trainers.base.vision import ridge

PROJECTIONS = {
    "CLIP": "visual.proj",
    "ResNet": "visual.attnpool.c_proj",
    "ConvNeXt": "visual.head.proj",
    "MobileCLIP-S": "",  # its trunk ends in one of its own
    "ViTamin": "visual.head.proj",
}


@pytest.mark.parametrize("rows", [8, 200])
def test_ridge_is_that_of_scikit_learn_with_a_relative_penalty(rows):
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
