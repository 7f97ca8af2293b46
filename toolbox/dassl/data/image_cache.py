"""Decoded and resized test images in one file, which all runs on a machine map into memory."""

import hashlib
import os
import time
from contextlib import suppress
from importlib.metadata import version
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from dassl.utils import ImageError
from dassl.utils.files import sha256_of
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T
from tqdm import tqdm

from common.files import write_bytes

DIGEST = hashlib.sha256().digest_size  # bytes; the digest of the pixels ends a file
CHUNK = 256  # images that are decoded before they are written: a disk may be slower
ABANDONED = 24 * 3600  # seconds after which nobody writes to an unfinished file any more


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
    sample = np.asarray(on_image(dataset.read(paths[0])))  # shows also what the text of a transform does not
    key = hashlib.sha256(f"{dataset.content} {sample.shape}".encode() + sample.tobytes()).hexdigest()[:32]
    kept = CachedImages(Path(os.path.expanduser(folder), f"images-{key}.rgb"), (len(paths), *sample.shape), on_tensor)
    if not kept.open():
        with ThreadPool(max(1, threads)) as pool:
            chunks = (paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK))
            decoded = chain.from_iterable(pool.map(lambda path: on_image(dataset.read(path)), each) for each in chunks)
            kept.write(tqdm(decoded, "Decoding", len(paths), unit="image"), 1e9 * cfg.CACHE_GB)
        pool.join()  # before workers are forked
    return kept if kept.pixels is not None else None


class CachedImages:
    """The pixels of images after the PIL steps of a test transform, in a file that several processes may write.

    It has bytes of `shape` (images, H, W, 3), then their SHA-256. `on_tensor` is the rest of the transform, from
    `ToTensor` on.
    """

    def __init__(self, file, shape, on_tensor):
        self.file, self.shape, self.on_tensor = file, shape, on_tensor
        self.pixels = None

    def __getitem__(self, index):
        """The image as the transform returns it."""
        if self.pixels is None:  # in a worker that was not forked
            self.pixels = np.memmap(self.file, np.uint8, "r", shape=self.shape)
        return self.on_tensor(Image.fromarray(self.pixels[index]))

    def __getstate__(self):
        return self.__dict__ | {"pixels": None}  # pickle would copy all of them

    def open(self):
        """Map the file into memory; returns whether it is there and is what was written."""
        if not self.file.is_file():  # a named pipe would wait for its writer
            return False
        try:
            with open(self.file, "rb") as file:
                if sha256_of(file, np.prod(self.shape)).digest() != file.read(DIGEST + 1):  # + 1: nothing follows it
                    return False
                self.pixels = np.memmap(file, np.uint8, "r", shape=self.shape)
            os.utime(self.file, follow_symlinks=False)  # files that were not used for longest are deleted first
        except OSError:  # deleted meanwhile
            return False
        print(f"Decoded test images: {self.file}")
        return True

    def write(self, images, limit):
        """Write the PIL images to the file and map it into memory; if it cannot be written, print why.

        `limit` is that of the size of all such files, in bytes. Raises ImageError for a missing or damaged image.
        """
        if np.prod(self.shape) > limit:
            print(f"{np.prod(self.shape) / 1e9:.1f} GB of decoded test images are not kept: raise CACHE_GB")
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.file, self.contents(images))  # a full disk would end a process with a memory map
        except ImageError:
            raise
        except (OSError, ValueError) as error:
            print(f"Decoded test images are not kept: {getattr(error, 'strerror', None) or error}")
            return
        self.make_room(limit)
        self.open()

    def contents(self, images):
        """The parts of the file: the pixels of each image, the digest."""
        digest = hashlib.sha256()
        for image in images:
            pixels = np.asarray(image)
            if pixels.shape != self.shape[1:]:
                raise ValueError(f"they have the sizes {self.shape[1:]} and {pixels.shape}")
            digest.update(pixels.tobytes())
            yield pixels.tobytes()
        yield digest.digest()

    def make_room(self, limit):
        """Delete abandoned files, and those not used for longest until the others have at most `limit` bytes."""
        with suppress(OSError):  # another process deletes them too
            for file in self.file.parent.glob(".images-*.partial"):
                if time.time() - file.stat().st_mtime > ABANDONED:
                    file.unlink()
            own = f"images-{'?' * 32}.*"  # .npy in earlier versions; other files of the folder are the user's
            files = sorted(self.file.parent.glob(own), key=lambda file: file.stat().st_mtime)
            excess = sum(file.stat().st_size for file in files) - limit
            for file in files:
                if excess > 0 and file != self.file:
                    excess -= file.stat().st_size
                    file.unlink()
