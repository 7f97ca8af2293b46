"""Memory of features: reading, writing and batches hold them once."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.base.features import Batches, Support
from trainers.base.tensor_cache import TensorCache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the memory")
# Test images of ImageNet; 64 views of 500 images.
LARGE = [(50_000, 512), pytest.param((500, 64, 512), marks=pytest.mark.thorough)]


def peak_of(function):
    """The most memory of this process while a function runs beyond what it held before, in bytes, and its result."""

    def memory(name: str) -> int:
        (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
        return 1024 * int(line.split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = memory("VmRSS")
    result = function()
    return memory("VmHWM") - before, result


@pytest.mark.parametrize("shape", LARGE)
def test_features_are_never_held_twice(shape, tmp_path):
    features, cache = torch.rand(shape).half(), TensorCache(tmp_path, "features", "image features", 1e9)
    cache.put("first", features[:1])  # loads what a file needs
    cache.get("first", 1)
    written, _ = peak_of(lambda: cache.put("key", features))
    assert written < 0.2 * features.nbytes
    read, found = peak_of(lambda: cache.get("key", len(features)))
    assert read < 1.2 * features.nbytes
    assert torch.equal(found, features)
    assert torch.equal(load_file(cache.file("key"))["features"], features)  # as others read it


def test_batches_do_not_copy_all_views():
    support = Support(torch.zeros(8000, 10, 128).movedim(1, 0), torch.arange(8000) % 10)
    batches = Batches(support, 100, 20, mixed=True)
    most, labels = peak_of(lambda: torch.cat([batch["label"] for batch in batches]))
    assert len(labels) == 2000 and most < 0.2 * support.views.nbytes
