"""What more images would bring: the accuracy after learning from a share of them, and what it would
look like if images of one scene were in several folds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference.sample import Sample

from . import choice
from .candidates import Candidate
from .heads import Heads
from .trials import Examples, Trials

SHARES = 0.25, 0.5
Weighted = Sequence[tuple[Candidate, float]]


def curve(
    heads: Heads, chosen: Weighted, examples: Examples, folds: NDArray[Any], prior: str
) -> list[tuple[float, float]]:
    """Scenes of each class, and the accuracy of some heads after learning from so many.

    Args:
        folds: (images,).
    """
    labels = examples.labels
    scenes = examples.scenes
    points: dict[float, float] = {}
    for share in SHARES:
        correct = []
        held = []
        sizes = []
        for fold in range(folds.max() + 1):
            out = np.flatnonzero(folds == fold)
            seen = some_scenes(labels, scenes, folds != fold, share)
            logits = answers(heads, chosen, examples, seen, out)
            correct.append(logits.argmax(axis=1) == labels[out])
            held.append(out)
            sizes.append(choice.groups_of_class(labels[seen], scenes[seen]))
        places = np.concatenate(held)
        sample = Sample.of(labels[places], scenes[places], prior)
        accuracy = sample.mean(np.concatenate(correct).astype(float))
        points.setdefault(float(np.mean(sizes)), 100 * accuracy)
    return list(points.items())


def curve_seconds(trials: Trials, chosen: Weighted) -> float:
    """About how long `curve` takes: less than a repeat of the folds by these heads took."""
    names = {candidate.name for candidate, _ in chosen}
    return sum(row["seconds"] for row in trials.rows if row["name"] in names) / 2


def full_point(
    trials: Trials, chosen: Weighted, scales: Mapping[Candidate, float], of_class: float
) -> tuple[float, float]:
    """Scenes of each class in all folds but one, and the accuracy of heads that have learned from
    these.
    """
    logits = [weight * scales.get(one, 1.0) * trials.logits[one][0] for one, weight in chosen]
    correct = np.sum(logits, axis=0).argmax(axis=1) == trials.sample.labels
    folds = trials.number_of_folds
    return of_class * (folds - 1) / folds, 100 * trials.sample.mean(correct.astype(float))


def ungrouped(
    heads: Heads, chosen: Weighted, examples: Examples, zero_shot: float, seed: int, prior: str
) -> float:
    """What the estimate would be if images of one scene could be in several folds."""
    labels = examples.labels
    folds = choice.folds(labels, np.arange(len(labels)), seed)[0]
    logits = np.zeros((1, len(labels), len(examples.names)))
    for fold in range(folds.max() + 1):
        out = np.flatnonzero(folds == fold)
        logits[0, out] = answers(heads, chosen, examples, np.flatnonzero(folds != fold), out)
    logits = logits[:, folds != choice.NEVER]
    sample = Sample.of(labels[folds != choice.NEVER], prior=prior)
    return choice.estimate(
        logits,
        sample,
        int(folds.max()) + 1,
        zero_shot,
        len(sample.labels) / len(np.unique(sample.labels)),
    ).accuracy


def answers(
    heads: Heads, chosen: Weighted, examples: Examples, seen: NDArray[Any], out: NDArray[Any]
) -> NDArray[Any]:
    """(out, classes): the weighted sum of the logits of heads that have learned from the images
    `seen`.
    """
    inside = torch.from_numpy(seen).to(examples.y.device)
    outside = torch.from_numpy(out).to(examples.y.device)
    learned_from = examples.x[inside], examples.y[inside]
    logits: Any = sum(
        weight * heads.answers(candidate, learned_from, examples.x[outside])
        for candidate, weight in chosen
    )
    return logits.cpu().numpy()


def some_scenes(
    labels: NDArray[Any], scenes: NDArray[Any], inside: NDArray[Any], share: float
) -> NDArray[Any]:
    """The places of a share of the scenes of each class, of those `inside` (images,); of each class
    one or more.
    """
    found = []
    for label in np.unique(labels):
        places = np.flatnonzero(inside & (labels == label))
        of_class = np.unique(scenes[places])
        number = max(1, round(share * len(of_class)))
        found.append(places[np.isin(scenes[places], of_class[:number])])
    return np.concatenate(found)
