"""What more images would bring: the accuracy after learning from a share of them, and the estimate
if near-copies were in other groups.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference.sample import Sample

from . import choose
from .candidates import Weighted
from .options import FitRequest
from .plan import steps
from .trials import Backbone, Examples, Trials

SHARES = 0.25, 0.5


def curve(
    backbone: Backbone, chosen: Weighted, folds: NDArray[Any], prior: str
) -> list[tuple[float, float]]:
    """Groups of each class, and the accuracy of some heads after learning from so many.

    Args:
        folds: (images,).
    """
    examples = backbone.examples
    places = np.argsort(folds, kind="stable")[np.sum(folds == choose.NEVER) :]
    sample = Sample.of(examples.labels[places], examples.groups[places], prior)
    points: dict[float, float] = {}
    for share in SHARES:
        groups, correct = point(backbone, chosen, folds, share)
        points.setdefault(groups, 100 * sample.mean(correct[places]))
    return list(points.items())


def point(
    backbone: Backbone, chosen: Weighted, folds: NDArray[Any], share: float
) -> tuple[float, NDArray[Any]]:
    """The groups of each class in a share of them, and (images,) whether the heads are right after
    learning from these.
    """
    examples = backbone.examples
    correct = np.zeros(len(folds))
    sizes = []
    for fold in steps(range(folds.max() + 1), "learning curve"):
        out = np.flatnonzero(folds == fold)
        seen = some_groups(examples, folds != fold, share)
        answers = logits_of(backbone, chosen, seen, out).argmax(axis=1)
        correct[out] = answers == examples.labels[out]
        sizes.append(choose.groups_of_class(examples.labels[seen], examples.groups[seen]))
    return float(np.mean(sizes)), correct


def curve_seconds(trials: Trials, chosen: Weighted) -> float:
    """About how long `curve` takes: less than a repeat of the folds by these heads took."""
    names = {candidate.name for candidate, _ in chosen}
    return sum(row["seconds"] for row in trials.rows if row["name"] in names) / 2


def estimate_by(
    groups: NDArray[np.int64],
    backbone: Backbone,
    chosen: Weighted,
    zero_shot: float,
    request: FitRequest,
) -> float:
    """The estimate by other numbers of the groups, (images,)."""
    labels = backbone.examples.labels
    folds = choose.folds(labels, groups, request.seed)[0]
    logits = np.zeros((1, len(labels), len(backbone.examples.names)))
    for fold in range(folds.max() + 1):
        out = np.flatnonzero(folds == fold)
        logits[0, out] = logits_of(backbone, chosen, np.flatnonzero(folds != fold), out)
    inside = folds != choose.NEVER
    sample = Sample.of(labels[inside], groups[inside], request.prior)
    logits = logits[:, inside]
    of_class = choose.groups_of_class(sample.labels, sample.groups)
    return choose.estimate(logits, sample, folds.max() + 1, zero_shot, of_class).accuracy


def logits_of(
    backbone: Backbone, chosen: Weighted, seen: NDArray[Any], out: NDArray[Any]
) -> NDArray[Any]:
    """(out, classes): the weighted sum of the logits of heads that have learned from the images
    `seen`.
    """
    x, y = backbone.examples.seen
    inside = torch.from_numpy(seen).to(y.device)
    outside = torch.from_numpy(out).to(y.device)
    logits: Any = sum(
        weight * backbone.heads.answers(candidate, (x[inside], y[inside]), x[outside])
        for candidate, weight in chosen
    )
    return logits.cpu().numpy()


def some_groups(examples: Examples, inside: NDArray[Any], share: float) -> NDArray[Any]:
    """The places of a share of the groups of each class, of those `inside` (images,); of each class
    one or more.
    """
    groups = examples.groups
    found = []
    for label in np.unique(examples.labels):
        places = np.flatnonzero(inside & (examples.labels == label))
        of_class = np.unique(groups[places])
        number = max(1, round(share * len(of_class)))
        found.append(places[np.isin(groups[places], of_class[:number])])
    return np.concatenate(found)
