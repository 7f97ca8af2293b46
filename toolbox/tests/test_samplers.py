"""Samplers: contents and number of the batches."""

import random
from collections import Counter

import numpy as np
import pytest
from dassl.data.datasets import Datum
from dassl.data.samplers import build_sampler
from dassl.utils import UsageError


@pytest.fixture
def source():
    """30 images: domains 0, 1, 2 with 13, 10 and 7 of them; classes 0 to 4 with 6 each."""
    random.seed(0)
    np.random.seed(0)
    domains = [0] * 13 + [1] * 10 + [2] * 7
    return [Datum("", i % 5, domain) for i, domain in enumerate(domains)]


def batches(sampler, size):
    indices = list(sampler)
    assert len(indices) % size == 0
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def test_random_and_sequential_sampler(source):
    assert list(build_sampler("SequentialSampler", data_source=source)) == list(range(30))
    shuffled = list(build_sampler("RandomSampler", data_source=source))
    assert sorted(shuffled) == list(range(30)) != shuffled


def test_random_domain_batches(source):
    # 2 of each of the 3 domains: the smallest one has 7 images, enough for 3 batches.
    sampler = build_sampler("RandomDomainSampler", data_source=source, batch_size=6, n_domain=0)
    got = batches(sampler, 6)
    assert len(sampler) == 18
    assert len(got) == 3
    for batch in got:
        assert Counter(source[i].domain for i in batch) == {0: 2, 1: 2, 2: 2}
    assert len({i for batch in got for i in batch}) == 18

    sampler = build_sampler("RandomDomainSampler", data_source=source, batch_size=6, n_domain=2)
    for batch in batches(sampler, 6):
        assert list(Counter(source[i].domain for i in batch).values()) == [3, 3]


def test_sequential_domain_batches(source):
    sampler = build_sampler("SeqDomainSampler", data_source=source, batch_size=3)
    got = batches(sampler, 3)
    assert len(sampler) == 18
    assert [{source[i].domain for i in batch} for batch in got] == [{0}, {1}, {2}, {0}, {1}, {2}]


def test_random_class_batches(source):
    # 2 classes of 3 images per batch; each class has two such groups.
    got = batches(build_sampler("RandomClassSampler", data_source=source, batch_size=6, n_ins=3), 6)
    assert len(got) in (4, 5)
    for batch in got:
        assert sorted(Counter(source[i].label for i in batch).values()) == [3, 3]
    assert len({i for batch in got for i in batch}) == 6 * len(got)
    # A class with fewer images than n_ins is sampled with replacement.
    (batch,) = batches(build_sampler("RandomClassSampler", data_source=source, batch_size=40, n_ins=8), 40)
    assert Counter(source[i].label for i in batch) == dict.fromkeys(range(5), 8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("RandomSampelr", {}, "RandomSampler"),
        ("RandomDomainSampler", {"batch_size": 7}, "multiple"),
        ("RandomDomainSampler", {"batch_size": 8, "n_domain": 4}, "3 domains"),
        ("RandomDomainSampler", {"batch_size": 24}, "only 7 images"),
        ("SeqDomainSampler", {"batch_size": 8}, "only 7 images"),
        ("RandomClassSampler", {"batch_size": 2, "n_ins": 4}, "below N_INS"),
        ("RandomClassSampler", {"batch_size": 12, "n_ins": 2}, "has 5"),
    ],
)
def test_invalid_numbers_are_refused(source, name, options, message):
    with pytest.raises(UsageError, match=message):
        build_sampler(name, data_source=source, **options)
