"""Persistent workers do not change the batches."""

import multiprocessing
import random
from itertools import islice

import numpy as np
import pytest
import torch
from dassl.data import DataManager
from dassl.data.data_manager import DatasetWrapper
from dassl.data.datasets import build_dataset
from dassl.utils import set_random_seed
from PIL import ImageDraw
from tiny_project import make_cfg
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms.functional import to_tensor


@pytest.fixture
def cfg_of(root, tmp_path):
    """`cfg_of(workers)`: 12 images in batches of 4."""
    return lambda workers=2: make_cfg(root, tmp_path, "DATALOADER.NUM_WORKERS", workers)


def scribble(image):
    """A transform that uses all random generators and draws on its image."""
    numbers = [random.random(), np.random.rand(), torch.rand(1).item()]
    ImageDraw.Draw(image).point((int(16 * random.random()), 3), fill=(1, 2, 3))
    return torch.cat([to_tensor(image).flatten(), torch.tensor(numbers)])


def steady(cfg):
    """The loader under test."""
    return DataManager(cfg, custom_tfm_train=scribble, persistent_workers=True).train_loader_x


def reference(cfg):
    """torch's loader of the same images, which starts new workers each epoch."""
    dataset = DatasetWrapper(cfg, build_dataset(cfg).train_x, scribble, is_train=True)
    return DataLoader(dataset, 4, sampler=RandomSampler(dataset), num_workers=cfg.DATALOADER.NUM_WORKERS)


def epoch(loader, batches=None):
    return torch.cat([torch.cat([b["img"], b["index"][:, None]], 1) for b in islice(loader, batches)])


def epochs(loader, *batches):
    """The batches of some epochs, and the numbers that the main process draws after each epoch."""
    return [(epoch(loader, count), torch.rand(1), random.random()) for count in batches]


def same(one, other):
    return all(torch.equal(a, b) and x == y and r == s for (a, x, r), (b, y, s) in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_equal_those_of_new_workers(cfg_of, workers):
    found = []
    for loader in (steady(cfg_of(workers)), reference(cfg_of(workers))):
        set_random_seed(3)
        found.append(epochs(loader, None, 2, None))  # the second is incomplete
    assert same(*found)
    assert not torch.equal(found[0][0][0], found[0][1][0])


def test_workers_persist_until_stopped(cfg_of):
    loader = steady(cfg_of())
    epoch(loader)
    workers = [worker.pid for worker in loader._iterator._workers]
    epoch(loader)
    assert [worker.pid for worker in loader._iterator._workers] == workers
    loader.stop_workers()
    assert not {worker.pid for worker in multiprocessing.active_children()} & set(workers)
