"""The state of a method that learns, and the loop over its epochs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Training:
    """The state of a training besides the model.

    Args:
        max_epoch: the number of epochs.
        batches: of an epoch.
        device: of the model.
        amp: whether gradients are scaled, on a GPU.

    Attributes:
        epoch: the present one, from 0.
        optim, sched: the optimiser and the schedule of its learning rate; None if nothing is
            learned by gradients.
        scaler: the scaler of gradients.
        check_loss: gets the loss of each step, and raises FloatingPointError if one is not finite.
    """

    def __init__(self, max_epoch: int, batches: int, device: torch.device, amp: bool):
        self.max_epoch = max_epoch
        self.batches = batches
        self.epoch = 0
        self.optim: Any = None
        self.sched: Any = None
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp and device.type != "cpu")
        self.check_loss: Callable[[Tensor], None] = check_finite

    @property
    def is_last_epoch(self) -> bool:
        return self.epoch + 1 == self.max_epoch

    def end_batches(self, schedule_steps: bool) -> None:
        """Change the learning rate after the batches of an epoch, unless it changes by steps."""
        if self.sched is not None and not schedule_steps:
            self.sched.step()


def check_finite(loss: Tensor) -> None:
    """Raise FloatingPointError unless a loss is finite."""
    if not loss.isfinite().all():
        raise FloatingPointError("the loss is not finite: lower OPTIM.LR or use PREC fp32")


def learn(
    method: Any,
    loader: Any,
    epochs: int,
    after_epoch: Callable[[float], None] = lambda share: None,
) -> None:
    """Train a `Method`, whose model has learned nothing yet. Nothing is saved.

    Args:
        loader: of the training images, or what `FeatureMethod.begin` returned.
        epochs: how many.
        after_epoch: gets the share of the epochs that have ended.

    Raises FloatingPointError if a loss is not finite.
    """
    method.start_training(epochs, len(loader))
    for epoch in range(epochs):
        method.training.epoch = epoch
        method.model.train()
        method.run_epoch(method.batches(loader))
        method.after_epoch()
        after_epoch((epoch + 1) / epochs)
    method.model.eval()
