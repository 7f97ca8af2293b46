"""Training for a number of steps, whatever the number of images."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from common.errors import UsageError

from .method import Method

LAST_RATE = 1e-6


class Repeated:
    """A loader that starts again until there were `steps` batches."""

    def __init__(self, loader: Any, steps: int):
        self.loader = loader
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return islice(chain.from_iterable(repeat(self.loader)), self.steps)


class SteppedMethod(Method):
    """A method that trains for `steps` steps, divided into OPTIM.MAX_EPOCH parts. Each part ends
    with a checkpoint.

    The learning rate is a cosine over all steps, from OPTIM.LR to 1e-6, without a warm-up. As in
    the official code, the images of the smaller last batch count.
    """

    schedule_steps = True
    keeps_last_batch = True

    @property
    def steps(self) -> int:
        """N_ITERS for each image of a class; if that is 0, those of MAX_EPOCH epochs."""
        training = self.training
        return self.settings.N_ITERS * shots_of(self) or training.max_epoch * training.batches

    def start_training(self, epochs: int, batches: int) -> None:
        super().start_training(epochs, batches)
        if self.steps < epochs:
            fault = f"OPTIM.MAX_EPOCH is {epochs}, and there are {self.steps} steps"
            raise UsageError(fault, "lower it")

    def build_schedule(self, optimizer: Optimizer) -> LRScheduler:
        return CosineAnnealingLR(optimizer, self.steps, LAST_RATE)

    def batches(self, loader: Any) -> Repeated:
        training = self.training
        first = self.steps * training.epoch // training.max_epoch
        last = self.steps * (training.epoch + 1) // training.max_epoch
        return Repeated(loader, last - first)


def cosines(optimizer: Optimizer, rate: float, lengths: Sequence[int]) -> LRScheduler:
    """A cosine from the learning rate to 1e-6 for each of these numbers of steps, one after the
    other.
    """

    def factor(step: int) -> float:
        for length in lengths:
            if step < length:
                return (
                    LAST_RATE + (rate - LAST_RATE) * (1 + math.cos(math.pi * step / length)) / 2
                ) / rate
            step -= length
        return LAST_RATE / rate

    return LambdaLR(optimizer, factor)


def shots_of(method: Method) -> int:
    """Training images of a class: DATASET.NUM_SHOTS, or their mean if all images are used."""
    shots = method.cfg.DATASET.NUM_SHOTS
    if shots > 0:
        return shots
    return max(1, round(method.n_train / max(1, len(method.class_names))))
