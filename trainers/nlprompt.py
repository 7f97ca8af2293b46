import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from common.errors import UsageError

from .base.features import loader_like
from .base.prompts import ContextSettings
from .coop import CoOp

ROUNDS = 1000  # of Sinkhorn's algorithm, at most
CHECKED = 10  # the error is computed every so many rounds
ERROR = 1e-6  # of the classes' shares
LOWEST = 745  # exp(-x) is 0 in double precision beyond


@dataclass(frozen=True)
class NLPromptSettings(ContextSettings):
    """USE_OT False is CoOp. REG_E is the regulariser of the transport, whose cost is minus PMODE:
    logP the logarithm of a softmax of probabilities, softmax that softmax, out the probabilities. A
    REG_E with which every entry is 0 is refused; published: every image then gets class 0.
    """

    CTX_INIT: bool | str = ""
    USE_OT: bool = True
    REG_E: int | float = 0.01
    PMODE: Literal["logP", "softmax", "out"] = "logP"
    UNDERFLOW: Literal["refused", "published"] = "refused"
    ranges = {"REG_E": (1e-6, 1000)}


def least_cost(classes: int) -> float:
    """The smallest cost of logP that can occur: that of a probability of 1."""
    return math.log(math.e + classes - 1) - 1


@torch.no_grad()
def transport(gain: Tensor, regulariser: float, in_logarithms: bool = True) -> Tensor:
    """The plan (images, classes), fp64, with equal shares for images and for classes that has the
    largest gain (images, classes) plus `regulariser` times its entropy, by Sinkhorn's algorithm.

    Without logarithms a kernel with a column of zeros ends it at its start, as in published code.
    """
    kernel = gain.double() / regulariser
    images, classes = kernel.shape
    if not in_logarithms and not kernel.exp().sum(dim=0).all():
        return kernel.exp() / (images * classes)
    of_image = torch.full_like(kernel[:, :1], -math.log(images))
    u = of_image
    for number in range(ROUNDS):
        v = -math.log(classes) - (kernel + u).logsumexp(dim=0)
        u = of_image - (kernel + v).logsumexp(dim=1, keepdim=True)
        if number % CHECKED == 0:
            shares = (kernel + u + v).logsumexp(dim=0).exp()
            if (shares - 1 / classes).norm() < ERROR:
                break
    return (kernel + u + v).exp()


class Split:
    """The batches of an epoch: images whose label agrees with the transport's, then the others.

    They are split when the length or the first batch is asked for.

    Args:
        method: it says which labels agree.
        loader: of the training images.
    """

    def __init__(self, method: "NLPrompt", loader: DataLoader):
        self.method = method
        self.loader = loader

    @cached_property
    def parts(self) -> list[tuple[bool, DataLoader]]:
        """Whether the labels count as wrong, and the images."""
        agrees = self.method.agreeing(self.loader)
        clean = [index for index, agreed in enumerate(agrees) if agreed]
        noisy = [index for index, agreed in enumerate(agrees) if not agreed]
        print(f"{len(clean)} of {len(agrees)} labels agree with the optimal transport")
        if not clean:
            return [(False, self.loader)]
        # As published, each part leaves out its last images that fill no batch; but where neither
        # part fills one, published code takes no step
        full = max(len(clean), len(noisy)) >= (self.loader.batch_size or 1)
        parts = [(False, self.part(clean, full))]
        return [*parts, (True, self.part(noisy, full))] if noisy else parts

    def part(self, indices: list[int], drop_last: bool) -> DataLoader:
        """A loader of some of the images, in random order."""
        images = Subset(self.loader.dataset, indices)
        return loader_like(self.loader, images, shuffle=True, drop_last=drop_last)

    def __len__(self) -> int:
        return sum(len(loader) for _, loader in self.parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for wrong, loader in self.parts:
            for batch in loader:
                yield {**batch, "wrong": wrong}


@TRAINER_REGISTRY.register()
class NLPrompt(CoOp):
    """CoOp for labels that may be wrong: optimal transport finds those for the mean absolute error
    (Pan et al., CVPR 2025).
    """

    Settings = NLPromptSettings
    takes_plugins = False
    wrong = False  # whether the labels of the present batch count as wrong

    def check_training(self):
        super().check_training()
        settings = self.settings
        classes = len(self.class_names)
        published = settings.UNDERFLOW == "published"
        if not settings.USE_OT or settings.PMODE != "logP" or published:
            return
        least = least_cost(classes) / LOWEST
        if least > settings.REG_E:
            fault = f"TRAINER.NLPROMPT.REG_E is {settings.REG_E}"
            fault += f": for {classes} classes every entry of the transport is 0"
            raise UsageError(fault, f"give at least {math.ceil(least * 1e5) / 1e5:g}, such as 0.01")

    def gain(self, logits: Tensor) -> Tensor:
        """What PMODE says, of logits (images, classes)."""
        p = logits.softmax(dim=1)
        if self.settings.PMODE == "logP":
            return p.log_softmax(dim=1)
        return p.softmax(dim=1) if self.settings.PMODE == "softmax" else p

    @torch.no_grad()
    def agreeing(self, loader: DataLoader) -> list[bool]:
        """Whether the label of each training image is that of the transport; False for images that
        the loader leaves out.
        """
        self.model.eval()
        outputs = []
        labels = []
        indices = []
        for batch in loader:
            images, given = self.parse_batch(batch)
            outputs.append(self.model_inference(images))
            labels.append(given)
            indices.append(batch["index"])
        self.model.train()
        in_logarithms = self.settings.UNDERFLOW == "refused"
        plan = transport(self.gain(torch.cat(outputs)), self.settings.REG_E, in_logarithms)
        right = plan.argmax(dim=1) == torch.cat(labels)
        dataset: Any = loader.dataset
        agrees = torch.zeros(len(dataset), dtype=torch.bool)
        agrees[torch.cat(indices)] = right.cpu()
        return agrees.tolist()

    def batches(self, loader):
        return Split(self, loader) if self.settings.USE_OT else loader

    def training_step(self, batch):
        self.wrong = batch.get("wrong", False)
        return super().training_step(batch)

    def loss(self, output, labels):
        """Cross-entropy; for labels that count as wrong, half the mean absolute error."""
        if not self.wrong:
            return super().loss(output, labels)
        p = output.logits.softmax(dim=1)
        return (1 - (p[torch.arange(len(p)), labels] + 1e-6)).mean(), {}
