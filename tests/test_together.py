"""Several seeds in one pass of the towers: each computes what it would compute alone."""

import sys

import pytest
import torch
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from drawn import METHODS, make_cfg
from open_clip.transformer import LayerNormFp32
from torch import nn

from trainers.together import Company
from trainers.together_calls import join

SEEDS = 1, 2, 3
# A prompt of every kind that differs from the default: by class, in the middle of the words, or by another loss.
SETTINGS = {
    "CoOp by class": ("CoOp", "CSC", True, "CLASS_TOKEN_POSITION", "middle"),
    "UPT mixed": ("UPT", "UNIFIED", True),
}
CASES = {name: (name,) for name in METHODS} | SETTINGS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def in_double(monkeypatch):
    """Everything in fp64, also LayerNorm and the features, which are cast to fp32 otherwise."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())
    monkeypatch.setattr(LayerNormFp32, "forward", nn.LayerNorm.forward)


class Recorder:
    """Trains a seed for some steps, alone or in a company, and notes what it sees."""

    def __init__(self, root, backbone, output, seed, case, options=()):
        self.seed, (method, *settings) = seed, CASES[case]
        pairs = {"PREC": "fp32"} | dict(zip(settings[::2], settings[1::2], strict=True))
        self.settings = [item for key, value in pairs.items() for item in (f"TRAINER.{method.upper()}.{key}", value)]
        few = ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, "OPTIM.LR", 0.002, "SEED", seed, *options]
        self.cfg = make_cfg(method, root, backbone, output / f"seed{seed}", *few, *self.settings)
        self.paths, self.logits, self.scores = [], [], []

    def build(self, member=None, double=False):
        set_random_seed(self.seed)
        self.trainer = trainer = build_trainer(self.cfg)
        if double:
            trainer.model.double()
        if member is not None:
            join(member, trainer)
        self.start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        loss, step, inference = trainer.loss, trainer.forward_backward, trainer.model_inference

        def noted_loss(images, labels):
            result = loss(images, labels)
            self.logits.append(result[1].detach().clone())
            return result

        def noted_step(batch):
            self.paths.append(batch["impath"])
            return step(batch)

        def noted_inference(images):
            self.scores.append(inference(images))
            return self.scores[-1]

        trainer.loss, trainer.forward_backward, trainer.model_inference = noted_loss, noted_step, noted_inference

    def __call__(self, member=None, double=False):
        self.build(member, double)
        self.trainer.train()
        self.end = self.trainer.model.state_dict()
        self.rng = torch.get_rng_state()


def together(recorders, **options):
    work = [lambda member, each=each: each(member, **options) for each in recorders]
    errors = Company(work, [sys.stdout] * len(work)).run()
    for error in filter(None, errors):
        raise error


def assert_close(a, b, bound):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert (value - b[name]).abs().max() <= bound * max(1, value.abs().max()), name


@pytest.mark.parametrize("case", CASES)
def test_seeds_train_together_as_alone(case, in_double, deep, eurosat, tmp_path):
    alone, beside = ([Recorder(eurosat, deep, tmp_path / name, seed, case) for seed in SEEDS] for name in "ab")
    for each in alone:
        each(double=True)
    together(beside, double=True)
    for a, b in zip(alone, beside, strict=True):
        assert b.paths == a.paths
        assert all(torch.equal(value, b.start[name]) for name, value in a.start.items())
        assert_close(dict(enumerate(a.logits)), dict(enumerate(b.logits)), 1e-8)
        assert_close(a.end, b.end, 1e-8)
        assert_close(dict(enumerate(a.scores)), dict(enumerate(b.scores)), 1e-8)
        assert torch.equal(a.rng, b.rng)
    assert len({path for each in beside for path in map(str, each.paths)}) > 1
