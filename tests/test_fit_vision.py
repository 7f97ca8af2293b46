"""Heads of a fit that read image features before the projection, without texts."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from tiny_models import FAMILIES, saved, small_timm, tiny_config

import clip
from fit.candidates import VISION, Candidate
from fit.heads import Heads
from inference.classifier import PromptedClassifier
from trainers.base.features import CachedOutput
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
        members = [(Candidate(VISION), 2.0), (Candidate("ZeroshotCLIP"), 0.1)]
        expected = sum(
            weight * heads.answers(one, (before, labels), before) for one, weight in members
        )
        (tmp_path / "model").mkdir()
        heads.classifier(members, before, labels, {}).save(tmp_path / "model")
        ensemble = PromptedClassifier.from_pretrained(tmp_path / "model", str(folder))
        found = ensemble.logits(images)
        assert ensemble.method == "Ensemble"
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        alone = heads.classifier([(Candidate(VISION), 1.0)], before, labels, {})
        assert alone.logits(images).argmax(dim=1).tolist() == labels.tolist()
        with torch.no_grad():
            torch.testing.assert_close(
                alone.logits(images), alone.model_for()(CachedOutput(before)), rtol=1e-4, atol=1e-4
            )
