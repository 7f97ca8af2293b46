"""A test that is divided among ranks."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from clip import Ranks

Outputs = Iterator[tuple[Tensor, Tensor]]


def outputs_of_ranks(compute: Callable[[Any], Outputs], loader: Any, ranks: Ranks) -> Outputs:
    """What `compute(loader)` yields, logits and labels of each batch, with every `count`-th batch computed by a rank.

    All ranks compute equally many batches, so that they can communicate in each of them: a rank for which none is left
    computes the last one again. If the loader does not read its images in order, each rank computes all batches.

    Args:
        compute: yields the logits and the labels of each batch of a loader.
        loader: of test images.
        ranks: of the run.
    """
    if not (isinstance(loader, DataLoader) and isinstance(loader.sampler, SequentialSampler)):
        yield from compute(loader)
        return
    batches: list[list[int]] = list(loader.batch_sampler or [])
    rounds = [batches[start : start + ranks.count] for start in range(0, len(batches), ranks.count)]
    own = loader_of([each[min(ranks.rank, len(each) - 1)] for each in rounds], loader)
    for each, (logits, labels) in zip(rounds, compute(own), strict=True):
        sizes = [*map(len, each), *[0] * (ranks.count - len(each))]
        parts = [ranks.gather(part, sizes).split(sizes[: len(each)]) for part in (logits, labels)]
        yield from zip(*parts, strict=True)


def loader_of(batches: list[list[int]], loader: DataLoader) -> DataLoader:
    """A loader of these batches of the same images."""
    return type(loader)(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        collate_fn=loader.collate_fn,
        generator=loader.generator,
    )
