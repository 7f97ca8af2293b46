"""The processes that compute one run together (torch.distributed calls them ranks), and how they communicate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of its run.

    All ranks call each function that communicates, in the same order.

    Attributes:
        rank: its number, from 0.
        count: how many there are; a rank alone does not communicate.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes what the run leaves behind."""
        return self.rank == 0

    def shard_sizes(self, items: int) -> list[int]:
        """The number of items of each rank: equal numbers, or one more for the first ranks."""
        return [items // self.count + (rank < items % self.count) for rank in range(self.count)]

    def shard(self, items: int) -> slice:
        """The items of this rank."""
        sizes = self.shard_sizes(items)
        start = sum(sizes[: self.rank])
        return slice(start, start + sizes[self.rank])

    def gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all ranks in the order of the ranks, bit for bit.

        Args:
            rows: this rank's; those after the first `sizes[rank]` are left out.
            sizes: how many rows each rank has.
        """
        if self.count == 1:
            return rows[: sizes[0]]
        shape = rows.shape[1:]
        if not sum(sizes) * shape.numel():
            return rows.new_empty(sum(sizes), *shape)
        own = rows.new_zeros(max(sizes), *shape)
        own[: sizes[self.rank]] = rows[: sizes[self.rank]]
        # As bytes, since not every backend knows every type.
        sent = own.view(-1).view(torch.uint8)
        parts = [torch.empty_like(sent) for _ in sizes]
        with connected():
            dist.all_gather(parts, sent)
        every = [part.view(rows.dtype).view_as(own)[:size] for part, size in zip(parts, sizes, strict=True)]
        return torch.cat(every)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' tensors, added up in the order of the ranks: the same bits on each of them."""
        first, *others = self.gather(x[None], [1] * self.count)
        return sum(others, start=first)

    def objects(self, value: T) -> list[T]:
        """A small value of each rank."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            with connected():
                dist.all_gather_object(values, value)
        return values

    def from_first(self, function: Callable[[], T]) -> T:
        """The result of a function that only rank 0 calls."""
        values: list[Any] = [function() if self.first else None]
        if self.count > 1:
            with connected():
                dist.broadcast_object_list(values)
        return values[0]

    def agree(self, facts: Mapping[str, object]) -> None:
        """Check that small facts are the same on all ranks.

        Raises:
            UsageError: a fact differs. All ranks raise it; it names the fact and a rank.
        """
        first, *others = self.objects(dict(facts))
        for rank, other in enumerate(others, 1):
            for name in first | other:
                a, b = first.get(name), other.get(name)
                if a != b:
                    short = max(len(str(a)), len(str(b))) <= 40  # not a checksum
                    values = f" ({b}) from rank 0 ({a})" if short else " from rank 0"
                    remedy = "give all ranks the same project, data, files and command line"
                    raise UsageError(f"{name} of rank {rank} differs{values}", remedy)


@contextmanager
def connected() -> Iterator[None]:
    """Raise UsageError if another rank has ended while this one exchanges something with it."""
    try:
        yield
    except RuntimeError as error:
        remedy = "run the same command again to resume from the last complete epoch"
        raise UsageError("another rank has ended too early", remedy) from error


def current_ranks() -> Ranks:
    """Those of this process's group; one rank alone if it has joined none."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()
