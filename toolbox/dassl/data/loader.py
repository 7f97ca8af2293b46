"""A data loader that starts its workers and decodes its images once, and yields what it would yield otherwise."""

import random
from multiprocessing.pool import ThreadPool

import numpy as np
import torch
from dassl.utils import read_image
from torch.utils.data import DataLoader, Sampler, get_worker_info
from tqdm import tqdm


class SteadyLoader(DataLoader):
    """A DataLoader of a `DatasetWrapper` whose workers live on from epoch to epoch.

    torch seeds workers when they start, from a number drawn of the main process's generator, whose state a checkpoint
    keeps. Its persistent workers go on with random states that no checkpoint could restore. Here that number is drawn
    for every epoch and sent along with the indices, and a worker that meets a new one seeds itself as torch would. So
    every epoch is, bit for bit, what new workers would yield, also in a run that was resumed.

    Args:
        dataset: a `DatasetWrapper`.
        sampler: of its indices.
        num_workers (int): worker processes; 0 loads in the main process.
        options: further arguments of `DataLoader`.
    """

    def __init__(self, dataset, sampler, num_workers, **options):
        sampler = SeededIndices(sampler) if num_workers else sampler
        super().__init__(
            dataset, sampler=sampler, num_workers=num_workers, persistent_workers=num_workers > 0, **options
        )

    def __iter__(self):
        self.dataset.keep_images(threads=self.num_workers)  # before workers are forked: they share the memory
        if self._iterator is not None and self._iterator._num_yielded < len(self):
            self.stop_workers()  # left in mid-epoch; or still read by somebody, who keeps them
        if self.num_workers:
            # At its start an iterator draws a seed itself.
            self.sampler.seed = None if self._iterator is None else draw_seed(self.generator)
        return super().__iter__()

    def stop_workers(self):
        """Let the workers go; another epoch would start new ones."""
        self._iterator = None


class SeededIndices(Sampler):
    """The indices of another sampler as pairs (index, seed of the epoch)."""

    def __init__(self, sampler):
        self.sampler = sampler
        self.seed = None

    def __iter__(self):
        seed = self.seed
        for index in self.sampler:
            yield index, seed

    def __len__(self):
        return len(self.sampler)


def draw_seed(generator=None):
    """An epoch's seed, drawn as torch draws it."""
    return torch.empty((), dtype=torch.int64).random_(generator=generator).item()


def seed_worker(seed):
    """In a worker process, give the generators the state that torch starts a worker with under this seed."""
    worker = get_worker_info().id
    random.seed(seed + worker)
    torch.manual_seed(seed + worker)
    np.random.seed(np.random.SeedSequence([worker, seed & 0xFFFFFFFF, seed >> 32, 0]).generate_state(4))


def decode_images(paths, limit, threads=1):
    """Read image files into memory, in their order, as many as fit.

    Args:
        paths: the files; one that is named twice counts once.
        limit (float): gigabytes.
        threads (int): files to decode at the same time.

    Returns:
        dict: path -> uint8 array (H, W, 3).

    Raises:
        ImageError: an image is missing or broken.
    """
    paths = list(dict.fromkeys(paths))
    pixels, size = {}, 0
    with ThreadPool(max(1, threads)) as pool:
        decoded = pool.imap(lambda path: np.asarray(read_image(path)), paths)
        for path, image in zip(paths, tqdm(decoded, desc="Decoding", total=len(paths), unit="image"), strict=True):
            if size + image.nbytes > 1e9 * limit:
                break
            pixels[path] = image
            size += image.nbytes
    pool.join()  # before the workers are forked
    rest = "" if len(pixels) == len(paths) else "; the others are decoded each time: raise DATALOADER.CACHE_GB"
    print(f"{len(pixels)} of {len(paths)} training images are kept in memory ({size / 1e9:.2f} GB){rest}")
    return pixels
