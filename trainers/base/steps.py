"""Training for a number of steps, whatever the number of images."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from common.errors import UsageError

from .trainer import PromptTrainer

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


class SteppedTrainer(PromptTrainer):
    """A method that trains for `steps` steps, divided into OPTIM.MAX_EPOCH parts. Each part ends
    with a checkpoint.

    The learning rate is a cosine over all steps, from OPTIM.LR to 1e-6, without a warm-up.
    """

    schedule_steps = True
    train_loader_x: Any

    @property
    def steps(self) -> int:
        """By default N_ITERS for each image of a class."""
        return self.settings.N_ITERS * shots_of(self)

    def build_data_loader(self) -> None:
        super().build_data_loader()
        self.dm.train_loader_x.batch_sampler.drop_last = (
            False  # the official code has a smaller last batch
        )
        if self.steps < self.max_epoch:
            raise UsageError(
                f"OPTIM.MAX_EPOCH is {self.max_epoch}, and there are {self.steps} steps", "lower it"
            )
        self.train_loader_x = Repeated(self.dm.train_loader_x, self.steps)

    def build_schedule(self, optimizer: Optimizer) -> LRScheduler:
        return CosineAnnealingLR(optimizer, self.steps, LAST_RATE)

    def before_epoch(self) -> None:
        super().before_epoch()
        first, last = (
            self.steps * epoch // self.max_epoch for epoch in (self.epoch, self.epoch + 1)
        )
        self.train_loader_x = Repeated(self.dm.train_loader_x, last - first)

    def stop_workers(self) -> None:
        self.train_loader_x = self.dm.train_loader_x  # Dassl's own loader, which has them
        super().stop_workers()


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


def shots_of(trainer: PromptTrainer) -> int:
    """Training images of a class: DATASET.NUM_SHOTS, or their mean if all images are used, or
    numbers by class.
    """
    shots = trainer.cfg.DATASET.NUM_SHOTS
    if isinstance(shots, int) and shots > 0:
        return shots
    return max(1, round(len(trainer.dm.dataset.train_x) / max(1, trainer.dm.num_classes)))
