"""A run whose ranks each compute a part of the steps, and test a part of the images."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from clip import Ranks, SplitTowers
from common.errors import UsageError

from .base import PromptTrainer


def split(trainer: Any, ranks: Ranks) -> None:
    """Let a trainer, which all ranks have built alike, compute its part.

    Raises:
        UsageError: its work cannot be split.
    """
    if ranks.count == 1:
        return
    if not isinstance(trainer, PromptTrainer):
        raise UsageError(
            f"{type(trainer).__name__} is not a prompt method, and only these run on several devices",
            "start it without torchrun",
        )
    trainer.model.share(trainer.model.clip, SplitTowers(trainer.model.towers, ranks, trainer.model))
    hooks = ("build_data_loader", "parse_batch_test", "model_inference", "test")
    if any(getattr(type(trainer), hook) is not getattr(PromptTrainer, hook) for hook in hooks):
        return  # it may read batches in its own way, so each rank tests all images
    trainer.evaluator = evaluator = SplitEvaluator(trainer.evaluator, ranks)
    for name in ("val_loader", "test_loader"):
        loader = getattr(trainer, name)
        if isinstance(loader, DataLoader) and isinstance(loader.sampler, SequentialSampler):
            setattr(trainer, name, SplitLoader(loader, evaluator, ranks))


class SplitEvaluator:
    """An evaluator that each rank gives the outputs of its own images, and that evaluates those of all images.

    Args:
        evaluator: Dassl's.
        ranks: of the run.

    Attributes:
        sizes: how many images of the present batches are each rank's; None if all ranks have the same ones.
    """

    def __init__(self, evaluator: Any, ranks: Ranks):
        self.evaluator, self.ranks = evaluator, ranks
        self.sizes: Sequence[int] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.evaluator, name)

    def process(self, outputs: Tensor, labels: Tensor) -> None:
        """
        Args:
            outputs: (images of this rank, classes).
            labels: (images of all ranks,).
        """
        if self.sizes is not None:
            outputs = self.ranks.gather(outputs, self.sizes)
        self.evaluator.process(outputs, labels)


class SplitLoader:
    """A loader of test images of which each rank reads every `count`-th batch.

    All ranks yield equally many batches, so that they can compute something together in each of them: a rank for which
    none is left reads the last one again. A batch has this rank's images and the labels of all ranks' batches.

    Args:
        loader: reads the images in order.
        evaluator: is told whose images these are.
        ranks: of the run.
    """

    def __init__(self, loader: DataLoader, evaluator: SplitEvaluator, ranks: Ranks):
        self.loader, self.evaluator, self.ranks = loader, evaluator, ranks
        batches: list[list[int]] = list(loader.batch_sampler or [])
        rounds = [batches[start : start + ranks.count] for start in range(0, len(batches), ranks.count)]
        self.sizes = [[*map(len, each), *[0] * (ranks.count - len(each))] for each in rounds]
        self.own = type(loader)(
            loader.dataset,
            batch_sampler=[each[min(ranks.rank, len(each) - 1)] for each in rounds],
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            collate_fn=loader.collate_fn,
            generator=loader.generator,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[dict]:
        for batch, sizes in zip(self.own, self.sizes, strict=True):
            self.evaluator.sizes = sizes
            yield batch | {"label": self.ranks.gather(batch["label"], sizes)}
        self.evaluator.sizes = None
