"""Shards by the workers of a Ray cluster: each has the model once, and writes one file after
another.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

from common.cluster import connected, gpus_each, no_room, places
from common.errors import UsageError

from .shard_files import Output, Shard, write_shard

TRIES = 3  # for a worker whose process or machine dies


class Writer:
    """Writes shards in a process of the cluster.

    Args:
        folder: where the command was started.
        threads: of torch.
        command: the module of the command, whose `output_of` reads the words.
    """

    def __init__(self, folder: str, threads: int, command: str, words: Sequence[str]):
        import torch
        from tqdm import tqdm

        os.chdir(folder)
        torch.set_num_threads(threads)
        self.output: Output = import_module(command).output_of(words)
        self.output.bar = tqdm(disable=True)

    def write(self, number: int, shard: Shard) -> tuple[int, int]:
        """Write a shard, unless that is done; returns the numbers of its images and errors."""
        self.output.errors = 0
        write_shard(self.output, number, shard)
        return len(shard.images()), self.output.errors


def workers(ray: Any, threads: int, command: str, words: Sequence[str]) -> list[Any]:
    """As many as the cluster has room for; UsageError if it has none."""
    gpus = gpus_each(ray)
    count = places(ray, threads, gpus)
    if not count:
        raise no_room(threads, gpus)
    options: dict[str, Any] = {"max_restarts": TRIES - 1, "max_task_retries": TRIES - 1}
    kind = ray.remote(num_cpus=threads, num_gpus=gpus, **options)(Writer)
    return [kind.remote(os.getcwd(), threads, command, words) for _ in range(count)]


def written(
    output: Output,
    words: Sequence[str] | None,
    shards: Iterable[tuple[int, Shard]],
    address: str | None,
) -> Iterator[tuple[int, int]]:
    """The numbers of images and errors of each shard, once a worker has written it. Shards wait
    here until a worker is free.

    Raises:
        UsageError: Ray is not installed, there is no cluster, it has no room for a worker, or a
            worker died TRIES times.
    """
    import torch

    threads = torch.get_num_threads()
    given = sys.argv[1:] if words is None else [*words]
    with connected(address) as ray:
        from ray.exceptions import RayActorError, RayTaskError
        from ray.util import ActorPool

        pool = ActorPool(workers(ray, threads, type(output).__module__, given))
        try:
            for number, shard in shards:
                if not pool.has_free():
                    yield pool.get_next_unordered()
                pool.submit(lambda one, task: one.write.remote(*task), (number, shard))
            while pool.has_next():
                yield pool.get_next_unordered()
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            fault = f"a worker died {TRIES} times, which often means a full memory"
            raise UsageError(fault, "run the same command again to resume") from error
