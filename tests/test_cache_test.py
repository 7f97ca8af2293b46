"""DATALOADER.CACHE_TEST: the same test images from a file that all runs share, and never another's or a damaged one."""

import hashlib
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data import DataManager, image_cache
from dassl.utils import ImageError
from drawn import make_cfg
from PIL import Image
from torchvision import transforms as T

pytestmark = pytest.mark.slow


@pytest.fixture
def root(eurosat, tmp_path):
    """A copy, as tests change it."""
    return shutil.copytree(eurosat, tmp_path / "data")


@pytest.fixture
def loader(root, tiny, tmp_path):
    """`loader(KEY, VALUE, ...)` -> the loader of a new run's test images, which are kept in tmp_path/cache."""

    def loader(*options, test_transform=None):
        cache = ["DATALOADER.CACHE_TEST", True, "CACHE", tmp_path / "cache", "DATALOADER.TEST.BATCH_SIZE", 5]
        cfg = make_cfg("CoOp", root, tiny, tmp_path, "INPUT.SIZE", (24, 20), *map(str, cache), *options)
        return DataManager(cfg, custom_tfm_test=test_transform).test_loader

    return loader


@pytest.fixture
def decodes(monkeypatch):
    """The paths of the images that are decoded."""
    from dassl.data import data_manager

    paths, read = [], data_manager.read_image
    monkeypatch.setattr(data_manager, "read_image", lambda path, *rest: (paths.append(path), read(path, *rest))[1])
    return paths


def images(loader) -> torch.Tensor:
    return torch.cat([batch["img"] for batch in loader])


def kept(tmp_path) -> list:
    return sorted((tmp_path / "cache").glob("*"))


PLAIN = "DATALOADER.CACHE_TEST", "False"


@pytest.mark.parametrize("workers", [0, 2])
def test_same_pixels_to_the_bit_as_without_it_and_none_is_decoded_again(workers, loader, decodes, tmp_path):
    options = ["DATALOADER.NUM_WORKERS", workers]
    plain = images(loader(*PLAIN, *options))
    assert torch.equal(images(loader(*options)), plain)
    assert len(kept(tmp_path)) == 1
    decodes.clear()
    again = loader(*options)
    assert torch.equal(images(again), plain) and torch.equal(images(again), plain)
    assert len(decodes) == 1  # the one that is compared


def test_batches_keep_labels_and_paths(loader):
    found = [
        [(batch["label"].tolist(), batch["impath"], batch["index"].tolist()) for batch in loader(*options)]
        for options in ((), PLAIN)
    ]
    assert found[0] == found[1]


def change_an_image(file, root):
    image = sorted((root / "eurosat/2750").glob("3/test_*.png"))[0]
    before = image.stat()
    pixels = np.asarray(Image.open(image)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip_a_bit(file, root):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def of_fewer_images(file, root):
    file.write_bytes(bytes(24 * 20 * 3) + hashlib.sha256(bytes(24 * 20 * 3)).digest())


def a_pipe(file, root):
    file.unlink()
    os.mkfifo(file)


HARMS = {
    "changed image": change_an_image,
    "flipped bit": flip_a_bit,
    "cut": lambda file, root: file.write_bytes(file.read_bytes()[:1000]),
    "empty": lambda file, root: file.write_bytes(b""),
    "longer": lambda file, root: file.write_bytes(file.read_bytes() + b"\0"),
    "fewer images": of_fewer_images,
    "pipe": a_pipe,
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_stale_or_damaged_file_is_not_used(harm, root, loader, decodes, tmp_path):
    images(loader())
    harm(*kept(tmp_path), root)
    expected = images(loader(*PLAIN))
    decodes.clear()
    assert torch.equal(images(loader()), expected)
    assert len(decodes) > 1
    decodes.clear()
    assert torch.equal(images(loader()), expected)  # from the new file
    assert len(decodes) == 1


OTHER = {"INPUT.SIZE": (20, 24), "INPUT.INTERPOLATION": "bicubic", "INPUT.EXIF_ORIENTATION": False}
OTHER |= {"DATASET.SUBSAMPLE_CLASSES": "base"}


@pytest.mark.parametrize("options", OTHER.items(), ids=OTHER)
def test_other_images_or_another_transform_have_a_file_of_their_own(options, loader, tmp_path):
    images(loader())
    assert torch.equal(images(loader(*options)), images(loader(*options, *PLAIN)))
    assert len(kept(tmp_path)) == 2


def test_transform_of_the_user_is_known_by_what_it_does(loader):
    """Its text does not tell by how much."""
    for factor in (0.5, 0.9):
        brighter = T.Lambda(lambda image, factor=factor: image.point(lambda value: value * factor))
        transform = T.Compose([T.Resize((24, 20)), brighter, T.ToTensor()])
        found = images(loader(test_transform=transform))
        assert torch.equal(found, images(loader(*PLAIN, test_transform=transform)))


def test_transform_without_steps_is_applied_to_each_image(loader, tmp_path, capsys):
    transform = T.Lambda(lambda image: T.functional.to_tensor(image))
    assert images(loader(test_transform=transform)).shape == (24, 3, 32, 32)
    assert "CACHE_TEST is ignored" in capsys.readouterr().out and not kept(tmp_path)


def test_limit_deletes_what_was_not_used_for_longest(loader, tmp_path):
    nbytes = {size: 24 * size * size * 3 for size in (24, 23, 22)}  # of 24 images
    for size in (24, 23, 24, 22):  # the second one is the oldest at the end
        images(loader("INPUT.SIZE", (size, size), "CACHE_GB", 2.5 * nbytes[24] / 1e9))
        time.sleep(0.02)
    digest = 32
    assert {file.stat().st_size - digest for file in kept(tmp_path)} == {nbytes[24], nbytes[22]}


def test_images_beyond_the_limit_and_an_unwritable_folder_only_cost_time(loader, tmp_path, capsys):
    expected = images(loader(*PLAIN))
    assert torch.equal(images(loader("CACHE_GB", 1e-6)), expected)
    assert "are not kept: raise CACHE_GB" in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert torch.equal(images(loader("CACHE", str(tmp_path / "file"))), expected)
    assert "are not kept:" in capsys.readouterr().out


def test_damaged_image_is_reported_as_without_it(root, loader, tmp_path):
    file = sorted((root / "eurosat/2750").glob("*/test_*.png"))[5]
    file.write_bytes(b"")
    with pytest.raises(ImageError, match=file.name):
        images(loader())
    assert not kept(tmp_path)


def test_unfinished_file_of_another_process_stays_until_it_is_abandoned(loader, tmp_path):
    (tmp_path / "cache").mkdir()
    writing, abandoned = (tmp_path / f"cache/.images-{name}.rgb.1.tmp" for name in "ab")
    for file in (writing, abandoned):
        file.touch()
    os.utime(abandoned, (0, 0))
    images(loader())
    assert writing.exists() and not abandoned.exists()


def fill(file: Path) -> bytes:
    """Keep images in a file, in a process of its own."""
    made = image_cache.KeptImages(file, (40, 64, 64, 3), T.ToTensor())
    made.write((Image.new("RGB", (64, 64), (number, 0, 0)) for number in range(40)), 1e9)
    return made.pixels.tobytes()


def test_two_processes_fill_it_at_once(tmp_path):
    file = tmp_path / "images-1.rgb"
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        found = list(pool.map(fill, [file] * 8))
    assert len(set(found)) == 1 and found[0][:3] == b"\0\0\0" and found[0][-3:] == b"\x27\0\0"
    assert list(tmp_path.iterdir()) == [file]
