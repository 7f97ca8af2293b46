"""A data loader that starts its workers once. Its batches are those of new workers."""

import random
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info


class SteadyLoader(DataLoader):
    """A DataLoader of a `DatasetWrapper` that keeps its workers from one epoch to the next.

    torch seeds workers at their start with a number drawn from the main process's generator, whose state is saved in
    checkpoints. With torch's persistent workers the random states of later epochs depend on earlier ones, and a
    checkpoint cannot restore them. So this loader draws a number for each epoch and sends it along with the indices
    (`SeededIndex`); a worker that receives a new number seeds itself as torch would. Each epoch is bit-identical to
    one of new workers, also in a resumed run. Workers have the dataset as it was when they started, and there is one
    iterator at a time.

    torch offers no public way to end persistent workers. Hence the use of `_iterator`, which
    toolbox/tests/test_loader.py checks.
    """

    def __init__(self, dataset, sampler, num_workers, **options):
        options |= {"num_workers": num_workers, "persistent_workers": num_workers > 0}
        super().__init__(dataset, sampler=SeededIndices(sampler) if num_workers else sampler, **options)

    def __iter__(self):
        if self.num_workers:
            # A new iterator draws the first seed itself.
            own = torch.empty((), dtype=torch.int64)
            self.sampler.seed = None if self._iterator is None else own.random_(generator=self.generator).item()
        return super().__iter__()

    def stop_workers(self):
        """Release the workers; the next epoch starts new ones."""
        self._iterator = None


class SeededIndex(NamedTuple):
    """A sample's index, and the seed of the epoch; None in a worker's first epoch, which torch has seeded."""

    index: int
    seed: int | None


class SeededIndices(Sampler):
    """The indices of another sampler as `SeededIndex`."""

    def __init__(self, sampler):
        self.sampler, self.seed = sampler, None

    def __iter__(self):
        seed = self.seed  # of this epoch
        return (SeededIndex(index, seed) for index in self.sampler)

    def __len__(self):
        return len(self.sampler)


def start_worker(number):
    """The `worker_init_fn` of all loaders: a worker does not print that its main process has ended."""

    def report(kind, error, trace):
        if not isinstance(error, FileNotFoundError | EOFError | ConnectionError):  # its pipes and files are gone
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = report


def seed_worker(seed):
    """Seed the generators of a worker process as torch does when a worker starts."""
    worker = get_worker_info().id
    random.seed(seed + worker)
    torch.manual_seed(seed + worker)
    np.random.seed(np.random.SeedSequence([worker, seed & 0xFFFFFFFF, seed >> 32, 0]).generate_state(4))
