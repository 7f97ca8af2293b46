"""Memory of features: reading, writing and batches hold them once."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

from common.cache import DiskCache
from trainers.base.features import Batches, CachedFeatures, Support, get_tensor, put_tensor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the memory")
# Test images of ImageNet; 64 views of 500 images.
LARGE = [(50_000, 512), pytest.param((500, 64, 512), marks=pytest.mark.thorough)]


def peak_of(function):
    """The most memory of this process while a function runs beyond what it held before, in bytes,
    and its result.
    """

    def memory(name: str) -> int:
        (line,) = (
            each
            for each in Path("/proc/self/status").read_text().splitlines()
            if each.startswith(name)
        )
        return 1024 * int(line.split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = memory("VmRSS")
    result = function()
    return memory("VmHWM") - before, result


@pytest.mark.parametrize("shape", LARGE)
def test_features_are_never_held_twice(shape, tmp_path):
    features = torch.rand(shape).half()
    cache = DiskCache(tmp_path, "features", "image features", 1e9)
    put_tensor(cache, "first", features[:1])  # loads what a file needs
    get_tensor(cache, "first", features[:1].shape, torch.half)
    written, _ = peak_of(lambda: put_tensor(cache, "key", features))
    assert written < 0.2 * features.nbytes
    read, found = peak_of(lambda: get_tensor(cache, "key", features.shape, torch.half))
    assert read < 1.2 * features.nbytes
    assert torch.equal(found, features)


class Images(Dataset):
    """So many images of one pixel."""

    cfg = CfgNode({"INPUT": {"SIZE": [1, 1]}})

    def __init__(self, images: int):
        self.data_source = [SimpleNamespace(label=0)] * images

    def __getitem__(self, place):
        return {"img": torch.zeros(3, 1, 1), "label": 0}


def cached_features(images: int) -> CachedFeatures:
    """Those of a loader of so many images, whose batches are of 50."""
    model = SimpleNamespace(
        clip=SimpleNamespace(logit_scale=torch.zeros(())),
        image_output=lambda images: SimpleNamespace(feature=torch.ones(len(images), 1024)),
    )
    return CachedFeatures(model, DataLoader(Images(images), batch_size=50), None)


def test_features_are_computed_into_one_tensor():
    features = cached_features(30_000)
    most, found = peak_of(features.tensor)
    assert found.shape == (30_000, 1024) and most < 1.3 * found.nbytes
    assert cached_features(0).tensor().shape == (0, 1024)


def test_batches_do_not_copy_all_views():
    support = Support(torch.zeros(8000, 10, 128).movedim(1, 0), torch.arange(8000) % 10)
    batches = Batches(support, 100, 20, mixed=True)
    most, labels = peak_of(lambda: torch.cat([batch["label"] for batch in batches]))
    assert len(labels) == 2000 and most < 0.2 * support.views.nbytes
