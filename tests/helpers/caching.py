"""Fixtures for the cache of image features (CACHE) that runs share."""

import shutil
from functools import partial

import pytest
import torch
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from drawn import make_cfg

from clip import TOWERS
from trainers import methods

FRESH = ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "DATALOADER.TEST.BATCH_SIZE", 5]
IMAGES = 24  # of the test
OFF = ("CACHE", "")


@pytest.fixture
def copied(eurosat, tmp_path):
    """A copy of the small EuroSAT, as tests change it."""
    return shutil.copytree(eurosat, tmp_path / "data")


@pytest.fixture
def cached(copied, tiny, tmp_path):
    """`cached("CoOp", KEY, VALUE, ...)` -> a trainer with tmp_path/cache as CACHE."""

    def cached(method, *options, backbone=tiny, output="run"):
        own = [
            "CACHE",
            str(tmp_path / "cache"),
            f"TRAINER.{methods()[method].section()}.PREC",
            "fp32",
        ]
        set_random_seed(1)
        return build_trainer(
            make_cfg(method, copied, backbone, tmp_path / output, *FRESH, *own, *options)
        )

    return cached


@pytest.fixture
def new(cached):
    """`new(KEY, VALUE, ...)` -> the trainer of a new run, which reads the test images."""
    return partial(cached, "CoOp")


@pytest.fixture
def work(monkeypatch):
    """The number of images in each call of the image tower."""
    counts = []
    for tower in TOWERS.values():

        def counted(clip, images, *options, encode=tower.encode_image):
            counts.append(len(images))
            return encode(clip, images, *options)

        monkeypatch.setitem(vars(tower), "encode_image", counted)
    return counts


@pytest.fixture
def kept(tmp_path):
    return lambda: sorted((tmp_path / "cache").glob("*"))


def values(trainer) -> torch.Tensor:
    """The logits of a test pass, as the evaluator of a trainer receives them."""
    found = []
    process = trainer.evaluator.process
    trainer.evaluator.process = lambda logits, labels: (
        found.append(logits.clone()),
        process(logits, labels),
    )
    trainer.test()
    trainer.evaluator.process = process
    return torch.cat(found)
