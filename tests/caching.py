"""Fixtures for the caches that runs share: image features (CACHE) and decoded test images (DATALOADER.CACHE_TEST)."""

import shutil
from functools import partial

import pytest
import torch
from dassl.data import DataManager, data_manager
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from drawn import make_cfg

from clip import TOWERS
from trainers import methods
from trainers.base import PromptTrainer

FRESH = ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "DATALOADER.TEST.BATCH_SIZE", 5]
IMAGES = 24  # of the test
OFF = {"features": ("CACHE", ""), "images": ("DATALOADER.CACHE_TEST", "False")}


@pytest.fixture(params=OFF)
def kind(request):
    """The cache that is tested."""
    return request.param


@pytest.fixture
def copied(eurosat, tmp_path):
    """A copy of the small EuroSAT, as tests change it."""
    return shutil.copytree(eurosat, tmp_path / "data")


@pytest.fixture
def cached(copied, tiny, tmp_path):
    """`cached("CoOp", KEY, VALUE, ...)` -> a trainer with tmp_path/cache as CACHE."""

    def cached(method, *options, backbone=tiny, output="run"):
        own = ["CACHE", str(tmp_path / "cache"), f"TRAINER.{methods()[method].section()}.PREC", "fp32"]
        set_random_seed(1)
        return build_trainer(make_cfg(method, copied, backbone, tmp_path / output, *FRESH, *own, *options))

    return cached


@pytest.fixture
def loader(copied, tiny, tmp_path):
    """`loader(KEY, VALUE, ...)` -> the loader of a new run's test images, which are kept in tmp_path/cache."""

    def loader(*options, test_transform=None):
        cache = ["DATALOADER.CACHE_TEST", True, "CACHE", str(tmp_path / "cache"), "DATALOADER.TEST.BATCH_SIZE", 5]
        cfg = make_cfg("CoOp", copied, tiny, tmp_path, "INPUT.SIZE", (24, 20), *cache, *options)
        return DataManager(cfg, custom_tfm_test=test_transform).test_loader

    return loader


@pytest.fixture
def new(kind, cached, loader):
    """`new(KEY, VALUE, ...)` -> what reads the test images of a new run: a trainer, or their loader."""
    return partial(cached, "CoOp") if kind == "features" else loader


@pytest.fixture
def work(kind, monkeypatch):
    """The number of images in each call of the image tower, or of the decoder."""
    counts = []
    if kind == "images":
        read = data_manager.read_image
        monkeypatch.setattr(data_manager, "read_image", lambda *arguments: (counts.append(1), read(*arguments))[1])
        return counts
    for tower in TOWERS.values():

        def counted(clip, images, *options, encode=tower.encode_image):
            counts.append(len(images))
            return encode(clip, images, *options)

        monkeypatch.setitem(vars(tower), "encode_image", counted)
    return counts


@pytest.fixture
def kept(tmp_path):
    return lambda: sorted((tmp_path / "cache").glob("*"))


def values(reader) -> torch.Tensor:
    """The logits of a test pass, as the evaluator of a trainer receives them, or the images of a loader."""
    if not isinstance(reader, PromptTrainer):
        return torch.cat([batch["img"] for batch in reader])
    found, process = [], reader.evaluator.process
    reader.evaluator.process = lambda logits, labels: (found.append(logits.clone()), process(logits, labels))
    reader.test()
    reader.evaluator.process = process
    return torch.cat(found)
