"""Which test images are answered together, or one after another: TEST.STREAM.

The draws are those of the published samplers of StatA and EM-Dirichlet, each from generators of
their own, so that a seed gives the same batches on every machine.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from yacs.config import CfgNode

from common.errors import UsageError
from common.schema import Accepts

Kind = Literal["", "in order", "batches", "tasks", "dirichlet"]
TRIES = 1000  # draws of classes for a task
SETTINGS: dict[str, tuple] = {
    "TEST.STREAM": (
        "",
        Accepts(Kind),
        "Images that are answered together, or their order: batches and tasks of few classes, "
        "dirichlet for classes that come in clusters; empty: the whole test set, or the method's",
    ),
    "TEST.STREAM_BATCH": (64, Accepts(int, 1), "Images of a batch, a task, or a step of a stream"),
    "TEST.STREAM_TASKS": (1000, Accepts(int, 1), "How many batches or tasks"),
    "TEST.STREAM_K_EFF": ([1, 4], Accepts(list[int], 1), "Least and most classes of one"),
    "TEST.STREAM_GAMMA": (
        0.1,
        Accepts(int | float, -1),
        "Of the Dirichlet distribution: the smaller, the more do classes cluster; -1: one class "
        "after another",
    ),
}
Parts = list[NDArray[np.int64]]


def facts(cfg: CfgNode) -> dict[str, Any]:
    """What results say of the stream of a test; empty without one."""
    test = cfg.TEST
    kind = test.get("STREAM", "")
    if kind in ("", "in order"):
        return {"kind": kind} if kind else {}
    found = {"kind": kind, "batch": test.STREAM_BATCH}
    if kind == "dirichlet":
        return found | {"gamma": test.STREAM_GAMMA}
    return found | {"tasks": test.STREAM_TASKS, "k_eff": list(test.STREAM_K_EFF)}


def parts(cfg: CfgNode, labels: Sequence[int]) -> Parts:
    """The places of the images that are answered together, of each batch.

    Raises:
        UsageError: K_EFF is more than there are classes, or no classes have enough images.
    """
    test = cfg.TEST
    kind = test.get("STREAM", "")
    y = np.asarray(labels)
    if kind in ("", "in order"):
        return [np.arange(len(y))]
    size = test.STREAM_BATCH
    if kind == "dirichlet":
        whole = order(cfg, y)
        return [whole[start : start + size] for start in range(0, len(whole) - size + 1, size)]
    k_eff = least_and_most(test.STREAM_K_EFF, len(np.unique(y)))
    drawn_by = batches if kind == "batches" else tasks
    return drawn_by(y, size, k_eff, test.STREAM_TASKS, max(0, cfg.SEED))


def order(cfg: CfgNode, labels: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """The order of the images of a stream (TEST.STREAM `in order` or `dirichlet`)."""
    test = cfg.TEST
    if test.STREAM == "in order":
        return np.arange(len(labels))
    seed = max(0, cfg.SEED)
    return dirichlet(np.asarray(labels), test.STREAM_BATCH, test.STREAM_GAMMA, seed, seed)


def check_stream(cfg: CfgNode, method: str, is_transductive: bool, depends_on_order: bool) -> None:
    """Raise UsageError if the method cannot be tested as TEST.STREAM says."""
    kind = cfg.TEST.STREAM
    kinds: tuple[str, ...] = ()
    if is_transductive:
        kinds = get_args(Kind)
    elif depends_on_order:
        kinds = ("", "in order", "dirichlet")
    if kind not in kinds:
        fault = f"TEST.STREAM is {kind!r}, and {method} answers for each image alone"
        if depends_on_order:
            fault = f"TEST.STREAM is {kind!r}, and {method} answers for one image after another"
        allowed = " or ".join(kind for kind in kinds if kind)
        raise UsageError(fault, f"set it to {allowed}" if allowed else "leave it out")


def least_and_most(k_eff: Sequence[int], classes: int) -> tuple[int, int]:
    if len(k_eff) != 2 or k_eff[0] > k_eff[1]:
        remedy = "give the least and the most number of classes: [1, 4]"
        raise UsageError(f"TEST.STREAM_K_EFF is {list(k_eff)}", remedy)
    if k_eff[1] > classes:
        fault = f"TEST.STREAM_K_EFF is {list(k_eff)}, and the test has {classes} classes"
        raise UsageError(fault, "lower it")
    return k_eff[0], k_eff[1]


def batches(
    labels: NDArray[Any], size: int, k_eff: tuple[int, int], count: int, seed: int
) -> Parts:
    """Batches of few classes, without replacement inside of a batch; large classes dominate, and a
    batch is smaller if its classes have fewer images (StatA's `BatchSampler`).
    """
    rng = np.random.RandomState(seed)
    classes = int(labels.max()) + 1
    found = []
    for _ in range(count):
        k = rng.randint(k_eff[0], k_eff[1] + 1) if k_eff[0] < k_eff[1] else k_eff[0]
        chosen = rng.choice(classes, k, replace=False) if k < classes else np.arange(classes)
        pool = images_of(labels, chosen)
        if len(pool) > size:
            pool = rng.choice(pool, size, replace=False)
        rng.shuffle(pool)
        found.append(pool)
    return found


def images_of(labels: NDArray[Any], classes: Iterable[int]) -> NDArray[np.int64]:
    """The places of the images of these classes, class after class."""
    return np.concatenate([np.flatnonzero(labels == label) for label in classes])


def dirichlet(
    labels: NDArray[Any], size: int, gamma: float, seed: int, shares_seed: int
) -> NDArray[np.int64]:
    """All images in an order in which classes come in clusters (StatA's `OnlineSampler`).

    There are as many slots as full batches, at most as many as classes. The images of a class are
    cut into shares of a Dirichlet distribution over the slots; each slot is shuffled.
    """
    rng = np.random.RandomState(seed)
    classes = int(labels.max()) + 1
    if gamma <= 0:
        in_turn = rng.permutation(classes)
        return np.concatenate([rng.permutation(images_of(labels, [label])) for label in in_turn])
    slots = max(1, min(len(labels) // size, classes))
    shares = np.random.default_rng(shares_seed).dirichlet([gamma] * slots, classes)
    return np.concatenate([rng.permutation(slot) for slot in cut(labels, shares)])


def cut(labels: NDArray[Any], shares: NDArray[np.float64]) -> Parts:
    """The places of the images of each slot, by the shares (classes, slots) of each class."""
    of_slot: list[Parts] = [[] for _ in shares[0]]
    for label, share in enumerate(shares):
        places = np.flatnonzero(labels == label)
        cuts = (np.cumsum(share) * len(places)).astype(int)[:-1]
        for slot, part in zip(of_slot, np.split(places, cuts), strict=True):
            slot.append(part)
    return list(map(np.concatenate, of_slot))


def tasks(labels: NDArray[Any], size: int, k_eff: tuple[int, int], count: int, seed: int) -> Parts:
    """Tasks of `size` images of few classes, without replacement (EM-Dirichlet's sampler); classes
    with fewer images together are drawn again.

    Raises:
        UsageError: no classes have so many images.
    """
    chance = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    return [task(labels, size, chance.randint(*k_eff), generator) for _ in range(count)]


def task(labels: NDArray[Any], size: int, k: int, generator: torch.Generator) -> NDArray[np.int64]:
    """The places of `size` images of k classes; UsageError as for `tasks`."""
    classes = int(labels.max()) + 1
    for _ in range(TRIES):
        chosen = torch.randperm(classes, generator=generator)[:k].tolist()
        pool = images_of(labels, chosen)
        # Also of a pool that is too small, as published
        mixed = torch.randperm(len(pool), generator=generator).numpy()
        if len(pool) >= size:
            return pool[mixed[:size]]
    fault = f"no {k} classes have {size} test images"
    raise UsageError(fault, "lower TEST.STREAM_BATCH, or raise TEST.STREAM_K_EFF")
