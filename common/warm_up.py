"""The warm-up of the learning rate, by epochs."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmUp(LRScheduler):
    """A warm-up of some epochs, then another schedule of the same optimiser.

    torch's `SequentialLR` does not fit: this warm-up sets an absolute rate, the same for all
    groups of parameters, and the schedule after it may count its epochs from the start of training.

    Args:
        optimizer: whose rates it sets.
        successor: the schedule after it.
        warmup_epoch: its epochs, 1 or more.
        first: the rate of the first epoch.
        is_linear: whether the rate then grows to the base rate; otherwise it stays `first`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        first: float,
        is_linear: bool = False,
        last_epoch: int = -1,
    ):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        self.first = first
        self.is_linear = is_linear
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The rate of each group of parameters in the present epoch."""
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        if self.is_linear and self.last_epoch > 0:
            return [rate * self.last_epoch / self.warmup_epoch for rate in self.base_lrs]
        return [self.first] * len(self.base_lrs)

    def step(self, epoch: int | None = None) -> None:
        """Set the next epoch's rates; call it after the epoch's last step of the optimiser."""
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
            return
        self.successor.step(epoch)
        self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values; that of the schedule after it under `successor`. Settings are
        not in it, which runs of earlier versions have saved by other names.
        """
        own = super().state_dict()
        state = {key: own[key] for key in own if key not in ("first", "is_linear")}
        return {**state, "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        own = dict(state_dict)
        self.successor.load_state_dict(own.pop("successor"))
        super().load_state_dict(own)
