"""A run whose ranks each compute a part of the steps."""

from typing import Any

from clip import Ranks
from common.errors import UsageError

from .test_time import ViewsTrainer
from .trainer import PromptTrainer


def split(trainer: Any, ranks: Ranks) -> None:
    """Let a trainer, which is equal on all ranks, compute its part.

    Raises:
        UsageError: its work cannot be split.
    """
    if ranks.count == 1:
        return
    name = type(trainer).__name__
    if not isinstance(trainer, PromptTrainer):
        what = f"{name} is not a prompt method, and only these run on several devices"
        raise UsageError(what, "start it without torchrun")
    if trainer.model.adapted or any(parameter.requires_grad for parameter in trainer.model.clip.parameters()):
        what = f"{name} learns inside the towers, whose gradients are not added up over ranks"
        raise UsageError(what, "start it without torchrun")
    if isinstance(trainer, ViewsTrainer):
        raise UsageError(f"{name} tests one image after another on one device", "start it without torchrun")
    if trainer.cfg.SEED < 0:
        raise UsageError("--seed is missing", "several ranks need it, to draw the same images")
    trainer.model.split(ranks)
