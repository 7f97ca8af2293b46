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
from torch.utils.data import DataLoader
from torchvision import transforms as T
from tqdm import tqdm

from common.cache import DiskCache

CHUNK = 256  # images that are decoded before they are written: a disk may be slower


class CachingLoader(DataLoader):
    """A DataLoader of test images that DATALOADER.CACHE_TEST keeps, before workers are forked."""

    def __iter__(self):
        if hasattr(self.dataset, "cache_test_images"):
            self.dataset.cache_test_images(threads=self.num_workers)
        return super().__iter__()


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
    cfg, steps = dataset.cfg, dataset.transform.transforms if isinstance(dataset.transform, T.Compose) else []
    first = next((place for place, step in enumerate(steps) if isinstance(step, T.ToTensor)), None)
    if first is None:
        print("DATALOADER.CACHE_TEST is ignored: the test transform is not made of steps, one of them ToTensor")
        return None
    on_image, on_tensor = T.Compose(steps[:first]), T.Compose(steps[first:])
    paths = [item.impath for item in dataset.data_source]
    folder = cfg.CACHE or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dassl")
    cache = DiskCache(Path(os.path.expanduser(folder)), "images", "decoded test images", 1e9 * cfg.CACHE_GB, "CACHE_GB")
    sample = np.asarray(on_image(dataset.read(paths[0])))  # shows also what the text of a transform does not
    key = hashlib.sha256(f"{dataset.content} {sample.shape}".encode() + sample.tobytes()).hexdigest()[:32]
    images = CachedImages(cache, key, (len(paths), *sample.shape), on_tensor)
    if not images.open():
        with ThreadPool(max(1, threads)) as pool:
            chunks = (paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK))
            decoded = chain.from_iterable(pool.map(lambda path: on_image(dataset.read(path)), part) for part in chunks)
            images.write(tqdm(decoded, "Decoding", len(paths), unit="image"))
        pool.join()  # before workers are forked
    return images if images.pixels is not None else None


class CachedImages:
    """The pixels of images after the PIL steps of a test transform, in a file that several processes may write.

    `shape` is (images, H, W, 3). `on_tensor` is the rest of the transform, from `ToTensor` on.
    """

    def __init__(self, cache, key, shape, on_tensor):
        self.cache, self.key, self.shape, self.on_tensor = cache, key, shape, on_tensor
        self.pixels = None

    def __getitem__(self, index):
        """The image as the transform returns it."""
        if self.pixels is None:  # in a worker that was not forked
            self.pixels = np.memmap(self.cache.file(self.key), np.uint8, "r", shape=self.shape)
        return self.on_tensor(Image.fromarray(self.pixels[index]))

    def __getstate__(self):
        return self.__dict__ | {"pixels": None}  # pickle would copy all of them

    def open(self):
        """Map the file into memory; returns whether it is there and is what was written."""
        nbytes = math.prod(self.shape)
        content = self.cache.get(self.key, f"uint8 {self.shape}", nbytes)
        if content is not None:
            self.pixels = np.frombuffer(content, np.uint8, nbytes).reshape(self.shape)
        return content is not None

    def write(self, images):
        """Write the PIL images to the file and map it into memory; if it cannot be written, print why.

        Raises ImageError for a missing or damaged image.
        """
        if self.cache.put(self.key, f"uint8 {self.shape}", math.prod(self.shape), map(self.pixels_of, images)):
            self.open()

    def pixels_of(self, image):
        pixels = np.asarray(image)
        if pixels.shape != self.shape[1:]:
            raise ValueError(f"they have the sizes {self.shape[1:]} and {pixels.shape}")
        return pixels.tobytes()
