"""Samplers for training over several domains or with several instances per class."""

import random
from collections import defaultdict

import numpy as np
from dassl.utils import UsageError, check_availability
from torch.utils.data.sampler import RandomSampler, Sampler, SequentialSampler


def _indices_by(data_source, attribute):
    groups = defaultdict(list)
    for index, item in enumerate(data_source):
        groups[getattr(item, attribute)].append(index)
    return groups


def _draw(indices, count):
    """Remove `count` random elements from the list and return them."""
    drawn = random.sample(indices, count)
    for index in drawn:
        indices.remove(index)
    return drawn


class RandomDomainSampler(Sampler):
    """Each batch holds the same number of images of `n_domain` randomly chosen domains.

    An epoch ends when one domain has too few images left for another batch.

    Args:
        data_source: list of `Datum`.
        batch_size (int): images per batch, a multiple of `n_domain`.
        n_domain (int): domains per batch; 0 or less means all of them.

    Raises:
        UsageError: the numbers do not fit each other or the data.
    """

    def __init__(self, data_source, batch_size, n_domain):
        self.data_source = data_source
        self.domain_dict = _indices_by(data_source, "domain")
        self.domains = list(self.domain_dict)
        self.n_domain = n_domain if n_domain and n_domain > 0 else len(self.domains)
        if self.n_domain > len(self.domains):
            raise UsageError(f"N_DOMAIN is {self.n_domain}, but the data has {len(self.domains)} domains")
        if batch_size % self.n_domain != 0:
            raise UsageError(f"BATCH_SIZE {batch_size} must be a multiple of the {self.n_domain} domains per batch")
        self.batch_size = batch_size
        self.n_img_per_domain = batch_size // self.n_domain
        smallest = min(len(indices) for indices in self.domain_dict.values())
        if smallest < self.n_img_per_domain:
            raise UsageError(
                f"a domain has only {smallest} images, but a batch takes {self.n_img_per_domain}; lower BATCH_SIZE"
            )
        self.length = sum(1 for _ in self)  # of one epoch; others may differ by a few batches

    def __iter__(self):
        remaining = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        while min(len(indices) for indices in remaining.values()) >= self.n_img_per_domain:
            for domain in random.sample(self.domains, self.n_domain):
                yield from _draw(remaining[domain], self.n_img_per_domain)

    def __len__(self):
        return self.length


class SeqDomainSampler(Sampler):
    """Each batch holds images of one domain; the domains alternate.

    An epoch ends when one domain has too few images left for another batch.

    Args:
        data_source: list of `Datum`.
        batch_size (int): images per batch.

    Raises:
        UsageError: a domain has fewer images than a batch.
    """

    def __init__(self, data_source, batch_size):
        self.data_source = data_source
        self.batch_size = batch_size
        self.domain_dict = _indices_by(data_source, "domain")
        self.domains = sorted(self.domain_dict)
        smallest = min(len(indices) for indices in self.domain_dict.values())
        if smallest < batch_size:
            raise UsageError(f"a domain has only {smallest} images; lower BATCH_SIZE {batch_size} to at most that")
        # One batch of each domain in turn.
        self.length = smallest // batch_size * batch_size * len(self.domains)

    def __iter__(self):
        remaining = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        for _ in range(self.length // (self.batch_size * len(self.domains))):
            for domain in self.domains:
                yield from _draw(remaining[domain], self.batch_size)

    def __len__(self):
        return self.length


class RandomClassSampler(Sampler):
    """Each batch holds `n_ins` images of each of `batch_size // n_ins` randomly chosen classes.

    Args:
        data_source: list of `Datum`.
        batch_size (int): images per batch, at least `n_ins`.
        n_ins (int): images per class; a class with fewer is sampled with replacement.

    Raises:
        UsageError: `batch_size` is below `n_ins`, or there are fewer classes than a batch needs.
    """

    def __init__(self, data_source, batch_size, n_ins):
        if batch_size < n_ins:
            raise UsageError(f"BATCH_SIZE {batch_size} is below N_INS {n_ins}; raise it or lower N_INS")
        self.data_source = data_source
        self.batch_size = batch_size
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.index_dic = _indices_by(data_source, "label")
        self.labels = list(self.index_dic)
        if len(self.labels) < self.ncls_per_batch:
            raise UsageError(
                f"a batch takes {self.ncls_per_batch} classes, but the data has {len(self.labels)}; raise N_INS"
            )
        self.length = sum(1 for _ in self)  # of one epoch; others may differ by a few batches

    def _groups(self, indices):
        """Shuffle the images of a class and group them by `n_ins`; a smaller last group is dropped."""
        if len(indices) < self.n_ins:
            indices = np.random.choice(indices, size=self.n_ins, replace=True).tolist()
        else:
            indices = random.sample(indices, len(indices))
        return [indices[i : i + self.n_ins] for i in range(0, len(indices) - self.n_ins + 1, self.n_ins)]

    def __iter__(self):
        groups = {label: self._groups(indices) for label, indices in self.index_dic.items()}
        available = list(self.labels)
        while len(available) >= self.ncls_per_batch:
            for label in random.sample(available, self.ncls_per_batch):
                yield from groups[label].pop(0)
                if not groups[label]:
                    available.remove(label)

    def __len__(self):
        return self.length


SAMPLERS = {
    "RandomSampler": lambda source, batch_size, n_domain, n_ins: RandomSampler(source),
    "SequentialSampler": lambda source, batch_size, n_domain, n_ins: SequentialSampler(source),
    "RandomDomainSampler": lambda source, batch_size, n_domain, n_ins: RandomDomainSampler(
        source, batch_size, n_domain
    ),
    "SeqDomainSampler": lambda source, batch_size, n_domain, n_ins: SeqDomainSampler(source, batch_size),
    "RandomClassSampler": lambda source, batch_size, n_domain, n_ins: RandomClassSampler(source, batch_size, n_ins),
}


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16):
    """Build a sampler over `data_source` by the name of its class.

    Args:
        sampler_type (str): a name in `SAMPLERS`.
        cfg: unused, accepted for existing callers.
        data_source: list of `Datum`.
        batch_size (int), n_domain (int), n_ins (int): see the samplers.

    Raises:
        UsageError: the sampler is unknown, or the numbers do not fit the data.
    """
    check_availability(sampler_type, list(SAMPLERS))
    return SAMPLERS[sampler_type](data_source, batch_size, n_domain, n_ins)
