"""A test of which each rank computes a part."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from clip import Ranks


def split_test(loader: Any, evaluator: Any, ranks: Ranks) -> tuple[Any, Any]:
    """A loader of this rank's part of the test images, and an evaluator that puts together the outputs of all ranks.

    A loader that does not read its images in order stays as it is: each rank tests all images then.
    """
    if not (isinstance(loader, DataLoader) and isinstance(loader.sampler, SequentialSampler)):
        return loader, evaluator
    shared = SplitEvaluator(evaluator, ranks)
    return SplitLoader(loader, shared, ranks), shared


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

    def evaluate(self) -> dict[str, float]:
        """The results of rank 0, which prints them and may write files."""
        return self.ranks.from_first(self.evaluator.evaluate)


class SplitLoader:
    """A loader of test images of which each rank reads every `count`-th batch.

    All ranks yield equally many batches, so that they can compute something together in each of them: a rank for which
    none is left reads the last one again. A batch has this rank's images and the labels of all ranks' batches.

    Args:
        loader: reads the images in order.
        evaluator: learns which images these are.
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
