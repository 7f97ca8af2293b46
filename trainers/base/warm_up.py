"""The warm-up of the learning rate on the published Dassl, with the rates of Dassl's own."""

from collections.abc import Mapping
from typing import Any

from dassl.optim import build_lr_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from common.errors import UsageError

KINDS = ("constant", "linear")


class WarmUp(LRScheduler):
    """A warm-up by epochs, then another schedule of the same optimiser.

    Args:
        optimizer: whose rates it sets.
        successor: the schedule after it.
        options: the section OPTIM; WARMUP_EPOCH is 1 or more.
    """

    def __init__(self, optimizer: Optimizer, successor: LRScheduler, options: CfgNode):
        self.successor = successor
        self.warmup_epoch = options.WARMUP_EPOCH
        self.is_linear = options.WARMUP_TYPE == "linear"
        self.first = options.WARMUP_MIN_LR if self.is_linear else options.WARMUP_CONS_LR
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """The rate of each group of parameters in the present epoch."""
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        if self.is_linear and self.last_epoch > 0:
            return [rate * self.last_epoch / self.warmup_epoch for rate in self.base_lrs]
        return [self.first] * len(self.base_lrs)

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
            return
        self.successor.step(epoch)
        self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values; that of the schedule after it under `successor`."""
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        own = dict(state_dict)
        self.successor.load_state_dict(own.pop("successor"))
        super().load_state_dict(own)


def warmed_up(optimizer: Optimizer, options: CfgNode) -> WarmUp:
    """The schedule of the section OPTIM after its warm-up, of 1 epoch or more.

    Raises UsageError if WARMUP_TYPE is unknown.
    """
    if options.WARMUP_TYPE not in KINDS:
        fault = f"OPTIM.WARMUP_TYPE is {options.WARMUP_TYPE}"
        raise UsageError(fault, f"give one of {', '.join(KINDS)}")
    after = options.clone()
    after.defrost()
    after.WARMUP_EPOCH = 0
    successor = build_lr_scheduler(optimizer, after)
    if not options.WARMUP_RECOUNT:
        # A step there would change the rates that it starts from.
        successor.last_epoch = options.WARMUP_EPOCH
    return WarmUp(optimizer, successor, options)
