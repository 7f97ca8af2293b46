"""Decoded and resized test images in one file, which all runs on a machine map into memory."""

import hashlib
import math
import os
from importlib.metadata import version
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import transforms as T
from tqdm import tqdm

from common.cache import DiskCache

CHUNK = 256  # images that are decoded before they are written: a disk may be slower


def content_of(dataset):
    """A SHA-256, in hexadecimal, of the image files of a `DatasetWrapper`, their order, INPUT and its transform's text.

    Raises:
        OSError: a file cannot be read, or is not a regular file.
    """
    versions = [version(package) for package in ("pillow", "torchvision")]
    digest = hashlib.sha256(f"1 {dataset.cfg.INPUT} {dataset.transform} {versions}".encode())
    for item in dataset.data_source:
        if not os.path.isfile(item.impath):  # a named pipe would wait for its writer
            raise FileNotFoundError(item.impath)
        content = Path(item.impath).read_bytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def cached_images(dataset, threads):
    """The `CachedImages` of a `DatasetWrapper`, from their file or decoded now; None if they cannot be kept.

    `threads` files are decoded at the same time. The folder is CACHE, or `~/.cache/dassl` if that is empty.
    """
    cfg = dataset.cfg
    steps = dataset.transform.transforms if isinstance(dataset.transform, T.Compose) else []
    first = next((place for place, step in enumerate(steps) if isinstance(step, T.ToTensor)), None)
    if first is None:
        print("DATALOADER.CACHE_TEST is ignored: the test transform is not made of steps, one of them ToTensor")
        return None
    on_image = T.Compose(steps[:first])
    on_tensor = T.Compose(steps[first:])
    paths = [item.impath for item in dataset.data_source]
    folder = cfg.CACHE or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dassl")
    cache = DiskCache(Path(os.path.expanduser(folder)), "images", "decoded test images", 1e9 * cfg.CACHE_GB, "CACHE_GB")
    sample = np.asarray(on_image(dataset.read(paths[0])))  # shows also what the text of a transform does not
    key = hashlib.sha256(f"{dataset.content} {sample.shape}".encode() + sample.tobytes()).hexdigest()[:32]
    shape = len(paths), *sample.shape
    entry = key, f"uint8 {shape}", math.prod(shape)
    content = cache.get(*entry)
    if content is None:
        with ThreadPool(max(1, threads)) as pool:
            chunks = (paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK))
            decoded = chain.from_iterable(pool.map(lambda path: on_image(dataset.read(path)), part) for part in chunks)
            images = tqdm(decoded, "Decoding", len(paths), unit="image")
            written = cache.put(*entry, (pixels_of(image, sample.shape) for image in images))
        pool.join()  # before workers are forked
        content = cache.get(*entry) if written else None
    return None if content is None else CachedImages(cache.file(key), content, shape, on_tensor)


def pixels_of(image, shape):
    """The bytes of a PIL image; ValueError if it has another shape."""
    pixels = np.asarray(image)
    if pixels.shape != shape:
        raise ValueError(f"they have the sizes {shape} and {pixels.shape}")
    return pixels.tobytes()


class CachedImages:
    """The pixels of images after the PIL steps of a test transform, in a file that is mapped into memory.

    `content` is the mapped file, `shape` is (images, H, W, 3). `on_tensor` is the rest of the transform, from
    `ToTensor` on.
    """

    def __init__(self, file, content, shape, on_tensor):
        self.file, self.shape, self.on_tensor = file, shape, on_tensor
        self.pixels = np.frombuffer(content, np.uint8, math.prod(shape)).reshape(shape)

    def __getitem__(self, index):
        """The image as the transform returns it."""
        if self.pixels is None:  # in a worker that was not forked
            self.pixels = np.memmap(self.file, np.uint8, "r", shape=self.shape)
        return self.on_tensor(Image.fromarray(self.pixels[index]))

    def __getstate__(self):
        return self.__dict__ | {"pixels": None}  # pickle would copy all of them
