"""The candidates, each tried on images that it has not learned from."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import inf
from typing import Any

import numpy as np
import torch
from dassl.utils import ChangedImageError
from numpy.typing import NDArray
from torch import Tensor

from common.errors import UsageError
from inference.sample import Sample

from . import choose
from .candidates import GUESSING, VOTING, Candidate, ensemble
from .heads import Heads, logit_std
from .plan import Check, Plan, TooLong, ignore

MOST_LOGITS = 5 * 10**7  # of all candidates, repeats, images and classes: 0.2 GB
EXACT = 10**7  # numbers of a candidate that are computed with in double precision
# A candidate, and what computes its logits or why it is left out
Task = tuple[Candidate, Callable[[Check], Tensor] | str]


@dataclass(frozen=True)
class Examples:
    """The images that candidates learn from.

    Attributes:
        x: (images, width), their features.
        y: (images,), the numbers of their classes, on the device of `x`.
        groups: (images,), the numbers of their groups.
        names: of the classes.
        drawn: (images,), whether an image is like new ones, and was not chosen to be labelled; None
            if all are.
        certain: (images,), the numbers of their groups if images with too little structure to
            decide are apart; None if there is no such doubt.
    """

    x: Tensor
    y: Tensor
    groups: NDArray[np.int64]
    names: Sequence[str]
    drawn: NDArray[np.bool_] | None = None
    certain: NDArray[np.int64] | None = None

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """`y` as an array."""
        return self.y.cpu().numpy()

    @property
    def seen(self) -> tuple[Tensor, Tensor]:
        """Features and labels, which `Heads` learn from."""
        return self.x, self.y

    @property
    def unit(self) -> str:
        """The unit that is held out, for people."""
        return "image" if len(np.unique(self.groups)) == len(self.groups) else "group"


@dataclass(frozen=True)
class Backbone:
    """One of the backbones to choose among.

    Attributes:
        name: empty if there is only one.
        candidates: heads; the first is zero-shot CLIP.
        trained: from the fold of each image (images,) to more candidates.
    """

    name: str
    heads: Heads
    examples: Examples
    candidates: Sequence[Candidate]
    trained: Callable[[NDArray[Any]], Iterable[Task]] = lambda folds: ()

    def name_of(self, candidate: Candidate) -> str:
        """For people."""
        guesses = candidate.method in self.heads.fixed and not self.heads.reads_names
        return GUESSING if guesses else candidate.name


@dataclass(frozen=True)
class Trials:
    """The candidates' answers for the images that were held out.

    Attributes:
        folds: (repeats, images), by `choose.folds`.
        held: (held,), the places of the images whose logits are kept.
        sample: these images.
        notes: for the user.
        rows: of each candidate its name, accuracy and seconds, or its fault.
        logits: of each candidate that works, (repeats, held, classes); heads come first, and have
            the spread 1.
        logit_stds: of the heads' logits before that; if a head had learned from these images, it
            would have been 1, too.
    """

    folds: NDArray[np.int64]
    held: NDArray[np.int64]
    sample: Sample
    notes: list[str]
    rows: Sequence[dict[str, Any]] = ()
    logits: dict[Candidate, NDArray[Any]] = field(default_factory=dict)
    logit_stds: dict[Candidate, float] = field(default_factory=dict)

    @cached_property
    def stacked(self) -> NDArray[Any]:
        """(candidates, repeats, held, classes). A trained candidate has one repeat, which counts as
        all.
        """
        shape = next(iter(self.logits.values())).shape
        return np.stack([np.broadcast_to(one, shape) for one in self.logits.values()])

    @property
    def heads(self) -> int:
        """The number of heads that work."""
        return len(self.logit_stds)

    @property
    def number_of_folds(self) -> int:
        return int(self.folds.max()) + 1

    @property
    def some(self) -> NDArray[np.int64] | None:
        """`held`, if memory has no room for all images that can be held out; else None."""
        return self.held if len(self.held) < np.sum(self.folds[0] != choose.NEVER) else None

    def kept(self, compute: Callable[[Check], Tensor] | str, check: Check) -> NDArray[Any]:
        """(repeats, held, classes): of the computed logits those that are kept.

        Raises:
            UsageError: the candidate is left out.
        """
        if isinstance(compute, str):
            raise UsageError(compute)
        logits = self.of_held(compute(check))
        return logits.astype(float) if logits.size < EXACT else logits

    def of_held(self, computed: Tensor) -> NDArray[Any]:
        """(repeats, held, classes) of logits ([repeats,] images, classes)."""
        logits = computed.numpy().reshape(-1, *computed.shape[-2:])
        return logits[:, self.held] if logits.shape[1] > len(self.held) else logits

    def check(self, computed: Tensor) -> None:
        """Raise UsageError if the interval of a candidate's accuracy in some folds lies below the
        best accuracy.
        """
        logits = self.of_held(computed)[:1]
        inside = np.isfinite(logits[0]).all(axis=1)
        if inside.all() or not inside.any():
            return
        found = choose.accuracy_of(logits[:, inside], self.sample.part(inside))
        best = max((row["accuracy"] for row in self.rows if "accuracy" in row), default=0.0)
        if found["high"] < best:
            share = f"{found['accuracy']:.1f}% of the first {inside.sum():,} held-out images right"
            raise UsageError(f"{share}, and the best candidate has {best:.1f}% of all")

    def part(self, inside: NDArray[np.bool_]) -> "Trials":
        """The same of some of the images that were held out (held,)."""
        logits = {one: values[:, inside] for one, values in self.logits.items()}
        return replace(self, held=self.held[inside], sample=self.sample.part(inside), logits=logits)

    def ensemble(self, inside: NDArray[np.bool_] | None = None) -> dict[int, float]:
        """The candidates that an ensemble may have, with their default weights, by images `inside`
        (held,); None for all.
        """
        inside = np.ones(len(self.held), dtype=bool) if inside is None else inside
        zero_shot = self.stacked[0, 0][inside]
        evidence = choose.evidence(zero_shot, self.sample.part(inside))
        return ensemble(list(self.logits), evidence)


def notes_of(
    examples: Examples, can_be_held: NDArray[np.bool_], held: NDArray[np.int64]
) -> list[str]:
    """Which images and classes take no part in the choice."""
    labels = examples.labels
    notes = []
    if len(held) < can_be_held.sum():
        reason = "images choose and estimate, as more would need too much memory"
        notes.append(f"{len(held):,} {reason}")
    alone = set(labels.tolist()).difference(labels[can_be_held].tolist())
    if alone:
        names = ", ".join(examples.names[place] for place in sorted(alone))
        notes.append(f"Classes with one {examples.unit} could not be held out: {names}")
    return notes


def no_trials(examples: Examples, folds: NDArray[np.int64], prior: str, number: int) -> Trials:
    """The images to try candidates on.

    Args:
        folds: (repeats, images); at least two folds.
        prior: how frequent the classes of new images are.
        number: of the candidates of all backbones, which share the memory.
    """
    held = to_choose_on(folds, examples.groups, len(examples.names), number)
    sample = Sample.of(examples.labels[held], examples.groups[held], prior)
    return Trials(folds, held, sample, notes_of(examples, folds[0] != choose.NEVER, held))


def try_candidates(backbone: Backbone, trials: Trials, plan: Plan) -> Trials:
    """The trials of heads, and then of trained methods.

    Args:
        trials: without candidates yet.
        plan: how much time there is for heads, and which ones take too long.
    """
    if backbone.name:
        print(f"Backbone {backbone.name}")
    print(f"{'candidate':<44} accuracy  seconds")
    trials = with_candidates(backbone, tasks(backbone, trials, plan), trials, plan)
    logit_stds = {one: logit_std(torch.from_numpy(values)) for one, values in trials.logits.items()}
    logits = {one: values / logit_stds[one] for one, values in trials.logits.items()}
    trials = replace(trials, logits=logits, logit_stds=logit_stds)
    return with_candidates(backbone, backbone.trained(trials.folds[0]), trials, plan)


def to_choose_on(
    folds: NDArray[Any], groups: NDArray[Any], classes: int, candidates: int
) -> NDArray[Any]:
    """The places of images whose logits are kept: those that are held out, or so many groups as
    memory has room for.
    """
    places = np.flatnonzero(folds[0] != choose.NEVER)
    room = MOST_LOGITS // (len(folds) * classes * (candidates + 1))
    if len(places) <= room:
        return places
    of_groups = np.unique(groups[places])
    number = max(2, int(room / len(places) * len(of_groups)))
    chosen = np.random.default_rng(0).permutation(of_groups)[:number]
    return places[np.isin(groups[places], chosen)]


def tasks(backbone: Backbone, trials: Trials, plan: Plan) -> Iterator[Task]:
    """The heads with what computes their logits, of all images or of some."""
    heads = backbone.heads
    seen = backbone.examples.seen
    for candidate in backbone.candidates:
        deadline = inf if candidate.method in heads.fixed else plan.deadline
        compute = partial(heads.held_out, candidate, seen, trials.folds, deadline, trials.some)
        yield candidate, plan.too_long.get(plan.key(candidate.name)) or compute


def with_candidates(
    backbone: Backbone, tasks: Iterable[Task], trials: Trials, plan: Plan
) -> Trials:
    """The trials with a row for each of these candidates, and the logits of those that work."""
    rows = [*trials.rows]
    logits = {**trials.logits}
    for candidate, compute in tasks:
        began = time.monotonic()
        name = backbone.name_of(candidate)
        try:
            # One without a vote must be the best alone
            check = ignore if candidate.method in VOTING else replace(trials, rows=rows).check
            logits[candidate] = trials.kept(compute, check)
        except ChangedImageError:  # no candidate is at fault
            raise
        except (FloatingPointError, UsageError) as error:
            if isinstance(error, TooLong):
                plan.write(too_long={plan.key(candidate.name): str(error)})
            rows.append({"name": name, "fault": str(error)})
            print(f"{name:<44} left out: {error}")
            continue
        row: dict[str, Any] = {"name": name, **choose.accuracy_of(logits[candidate], trials.sample)}
        rows.append(row | {"seconds": time.monotonic() - began})
        print(f"{name:<44} {row['accuracy']:7.1f}% {rows[-1]['seconds']:8.1f}", flush=True)
    return replace(trials, rows=rows, logits=logits)
