"""What runs side by side ask for: outputs of the towers, gradients, and batches of test images (together.py)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from clip import CLIP, Edit, Schedule, TextPrompts, Towers
from clip.stacking import learned, same_form, stack_texts, stack_vision

from .base import PromptTrainer
from .together import Member, NotTogether


def join(member: Member, trainer: Any) -> None:
    """Let a run's trainer compute together with those of other runs, as far as it can.

    Args:
        member: the place of its run.
        trainer: built, and not yet trained. It shares the backbone of the first one.
    """
    member.trainer, company = trainer, member.company
    trainer.runs_together = len(company.members)  # for results: they share its times
    for name in ("val_loader", "test_loader"):
        loader = getattr(trainer, name, None)
        if isinstance(loader, DataLoader) and isinstance(loader.sampler, SequentialSampler):
            setattr(trainer, name, SharedLoader(member, loader))
    if not isinstance(trainer, PromptTrainer):
        print(f"{type(trainer).__name__} is not a prompt method: its seeds train one after another")
        return
    if company.clip is None:
        company.clip = trainer.model.clip
    trainer.model.share(company.clip, SharedTowers(member, trainer.model.towers))
    trainer.autograd = SharedAutograd(member)


class SharedTowers:
    """The towers of a run that shares their passes."""

    def __init__(self, member: Member, towers: Towers):
        self.member, self.towers = member, towers

    def encode_image(self, clip: CLIP, images: Tensor, schedule: Schedule = ()) -> Tensor:
        return self._ask(ImageCall, "encode_image", clip, images, schedule)

    def encode_image_and_prompts(self, clip: CLIP, images: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        return self._ask(ImageCall, "encode_image_and_prompts", clip, images, schedule)

    def encode_text(self, clip: CLIP, prompts: TextPrompts) -> Tensor:
        return self._ask(TextCall, "encode_text", clip, prompts)

    def _ask(self, kind: Any, function: str, clip: CLIP, *arguments: Any) -> Any:
        device = clip.logit_scale.device.type
        amp = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        how = function, self.member.trainer.model.training, torch.is_grad_enabled(), amp
        outputs = self.member.ask(kind(self.towers, how, clip, *arguments))
        return tuple(map(self._watched, outputs)) if isinstance(outputs, tuple) else self._watched(outputs)

    def _watched(self, output: Tensor) -> Tensor:
        return Gate.apply(self.member.company, output) if output.requires_grad else output


class Gate(torch.autograd.Function):
    """Returns its argument. A gradient passes through it only for all runs at once: they have one graph."""

    @staticmethod
    def forward(ctx: Any, company: Any, x: Tensor) -> Tensor:
        ctx.company = company
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        if not ctx.company.differentiating:
            raise NotTogether
        return None, gradient


@dataclass(frozen=True, eq=False)
class TowerCall:
    """A call of a tower. `how`: the function, whether it trains, whether it needs gradients, and the type of amp."""

    towers: Towers
    how: tuple[str, bool, bool, torch.dtype | None]
    clip: CLIP
    waits = False

    @property
    def training(self) -> bool:
        return self.how[1]

    def compute(self, *arguments: Any) -> Any:
        function, _, gradients, amp = self.how
        device = self.clip.logit_scale.device.type
        with torch.set_grad_enabled(gradients), torch.autocast(device, amp, enabled=amp is not None):
            return getattr(self.towers, function)(self.clip, *arguments)


@dataclass(frozen=True, eq=False)
class ImageCall(TowerCall):
    images: Tensor
    schedule: Schedule

    def fits(self, other: Any) -> bool:
        return (
            isinstance(other, ImageCall)
            and other.how == self.how
            and other.images.shape[1:] == self.images.shape[1:]
            and same_form(other.schedule, self.schedule)
        )

    def answers(self, calls: Sequence["ImageCall"]) -> Sequence[Any]:
        images, schedules = [call.images for call in calls], [call.schedule for call in calls]
        if not any(schedules) and all(each is images[0] for each in images):
            return [self.compute(images[0])] * len(calls)
        if len(calls) == 1 or not self.training:  # a test computes the same as in a run alone, to the bit
            return [call.compute(call.images, call.schedule) for call in calls]
        sizes = [len(each) for each in images]
        outputs = self.compute(torch.cat(images), stack_vision(schedules, sizes))
        if isinstance(outputs, tuple):
            return list(zip(*(output.split(sizes) for output in outputs), strict=True))
        return outputs.split(sizes)

    def of_absent(self) -> "ImageCall":
        return replace(self, schedule=detached(self.schedule))


@dataclass(frozen=True, eq=False)
class TextCall(TowerCall):
    prompts: TextPrompts

    def fits(self, other: Any) -> bool:
        if not isinstance(other, TextCall) or other.how != self.how:
            return False
        a, b = self.prompts, other.prompts
        forms = [[Edit(add=each.ctx), *each.deep] for each in (a, b)]
        return same_form(*forms) and equal(a.ids, b.ids) and equal(a.slots, b.slots)

    def answers(self, calls: Sequence["TextCall"]) -> Sequence[Tensor]:
        if not learned(self.prompts):
            return [self.compute(self.prompts)] * len(calls)
        if len(calls) == 1 or not self.training:
            return [call.compute(call.prompts) for call in calls]
        prompts, sizes = stack_texts([call.prompts for call in calls])
        parts = self.compute(prompts).split(sizes)
        return [part if call.prompts.by_image else part[0] for part, call in zip(parts, calls, strict=True)]

    def of_absent(self) -> "TextCall":
        prompts = self.prompts
        ctx = None if prompts.ctx is None else prompts.ctx.detach()
        return replace(self, prompts=replace(prompts, ctx=ctx, deep=detached(prompts.deep)))


def detached(schedule: Schedule) -> Schedule:
    return [edit if edit.add is None else replace(edit, add=edit.add.detach()) for edit in schedule]


def equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


class SharedAutograd:
    """Two functions of `torch.autograd`, for a run that has one graph with others."""

    def __init__(self, member: Member):
        self.member = member

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        self.member.ask(GradientCall(self.member, loss, None, retain_graph))

    def grad(self, loss: Tensor, inputs: Sequence[Tensor], retain_graph: bool = False) -> Sequence[Tensor]:
        return self.member.ask(GradientCall(self.member, loss, list(inputs), retain_graph))


@dataclass(frozen=True, eq=False)
class GradientCall:
    """A gradient of a loss: left in the leaves of its graph, or that of `inputs`.

    A loss adds exact zeros to the gradients of other runs, so one backward pass of the sum gives each run its own.
    """

    member: Member
    loss: Tensor
    inputs: list[Tensor] | None
    retain_graph: bool
    training, waits = True, True  # once the graph is freed, no other run can use it

    def fits(self, other: Any) -> bool:
        return isinstance(other, GradientCall) and (other.inputs is None) == (self.inputs is None)

    def answers(self, calls: Sequence["GradientCall"]) -> Sequence[Any]:
        company, losses = self.member.company, [call.loss for call in calls]
        keep = any(call.retain_graph for call in calls)
        company.differentiating = True
        try:
            if self.inputs is None:
                torch.autograd.backward(losses, retain_graph=keep)
                return [None] * len(calls)
            gradients = iter(torch.autograd.grad(losses, [x for call in calls for x in call.inputs or ()], None, keep))
            return [[next(gradients) for _ in call.inputs or ()] for call in calls]
        finally:
            company.differentiating = False

    def of_absent(self) -> None:
        return None


class SharedLoader:
    """A loader of test images that decodes them once for all runs that are to read the same ones.

    Args:
        member: the place of its run.
        loader: the run's own loader; it reads the images in order.
    """

    def __init__(self, member: Member, loader: DataLoader):
        self.member, self.loader = member, loader
        self.batches: Iterator[dict] | None = None
        dataset: Any = loader.dataset
        items = [(item.impath, item.label) for item in getattr(dataset, "data_source", [])] or [(id(self), 0)]
        self.content = loader.batch_size, hash(tuple(items))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        # As an iterator of its own would draw.
        torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        self.batches = None
        for _ in range(len(self)):
            yield self.member.ask(BatchCall(self))


@dataclass(frozen=True, eq=False)
class BatchCall:
    """The next batch of a loader."""

    loader: SharedLoader
    training, waits = False, True  # all runs have done with the batch before

    def fits(self, other: Any) -> bool:
        if not isinstance(other, BatchCall):
            return False
        a, b = self.loader, other.loader
        return a.content == b.content and a.batches is b.batches

    def answers(self, calls: Sequence["BatchCall"]) -> Sequence[dict]:
        loader = self.loader
        batches: Iterator[dict] = iter(loader.loader) if loader.batches is None else loader.batches
        for call in calls:
            call.loader.batches = batches
        batch = next(batches)
        if isinstance(batch.get("img"), Tensor):  # moved once, so that all runs have the same tensor
            batch["img"] = batch["img"].to(loader.member.trainer.device)
        return [batch] * len(calls)

    def of_absent(self) -> None:
        return None
