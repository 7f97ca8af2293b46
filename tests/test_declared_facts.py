"""A method that denies a fact, or whose answers depend on more than an image, is found by its test
(`assert_method_works`), in one line that names the fact.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from test_bad_methods import Correct, Sentences, learning
from torch import nn

from trainers.base.checks import assert_method_works
from trainers.base.feature_method import FittedMethod
from trainers.base.head import Head
from trainers.base.prompted import normalize


class Normed(Sentences):
    """Its batch norm has a buffer of integers, which no test reads."""

    def __init__(self, clip, classnames):
        super().__init__(clip, classnames)
        self.norm = nn.BatchNorm1d(clip.visual.output_dim)

    def image(self, tower, learned):
        return normalize(self.norm(tower.feature.float()) + self.shift)


class Drawing(Sentences):
    def image(self, tower, learned):
        return normalize(F.dropout(tower.feature + self.shift, 0.5))


class Centred(Sentences):
    def image(self, tower, learned):
        features = tower.feature + self.shift
        return normalize(features - features.mean(dim=0))


class RandomTexts(Sentences):
    def text(self, image_features):
        prompts = super().text(image_features)
        word = int(torch.randint(300, 400, ()))
        ids = prompts.ids.index_fill(1, torch.tensor(1), word)
        return replace(prompts, ids=ids if self.training else prompts.ids)


class Hooked(Correct):
    def finish_model(self):
        self.model.frozen.visual.ln_post.register_forward_hook(lambda _, __, output: output + 1)


class Overwriting(Correct):
    def after_epoch(self):
        self.model.frozen.visual.proj.data += 1


class HeadOfClasses(Head):
    def __init__(self, classes, width):
        super().__init__()
        self.means = nn.Buffer(torch.zeros(classes, width))

    def classify(self, image, text, scale):
        return scale * normalize(image) @ (text + self.means).T


class OfItsClasses(FittedMethod):
    transfers = True

    def build_head(self, classes, width, rows):
        return HeadOfClasses(classes, width)

    def fit(self, support):
        self.head.means.fill_(0.01)


def test_a_batch_norm_works(monkeypatch):
    """Its number of batches, an integer, was "not finite" in every checkpoint."""
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Normed", learning(Normed))
    assert_method_works("Normed")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (learning(Drawing), "gives other logits for the same images a second time"),
        (learning(Centred), "gives an image other logits alone than in a batch"),
        (learning(RandomTexts), "RandomTexts says random_text = False"),
        (Hooked, "Hooked changes the frozen CLIP"),
        (Overwriting, "Overwriting changes the frozen CLIP"),
        (OfItsClasses, "says transfers = True and cannot tell new classes"),
        (type("M", (Correct,), {"learns": False}), "M says learns = False and has prompt_learner"),
        (type("M", (Correct,), {"seeded": False}), "M says seeded = False and learns"),
    ],
)
def test_a_wrong_fact_is_named(method, words, monkeypatch):
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, method.__name__, method)
    with pytest.raises(AssertionError, match=words):
        assert_method_works(method.__name__)
