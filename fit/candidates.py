"""The candidates: zero-shot CLIP, and the heads that earned their place beside one another
(docs/measurements/fit.md).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from yacs.config import CfgNode

import trainers
from inference.description import configuration

BATCH = 256  # features of a step
Pairs = tuple[tuple[str, Any], ...]

# Which learn nothing: by a template, and by the user's sentences
ZERO_SHOT = "ZeroshotCLIP"
GUESSING = "guessing"  # its name on a backbone without texts
SENTENCES = "CuPL"
VISION = "VisionProbe"  # without texts, on features before the projection
KERNEL = "KernelProbe"  # the same, by similarities to the training images
VISION_ONLY = VISION, KERNEL
# The methods of a sum: of heads on projected features, some on those before the projection, and
# one by similarities
LINEAR_SUM = "Linear"
ENSEMBLE = "Ensemble"
KERNEL_ENSEMBLE = "KernelEnsemble"
LINEAR = "LinearProbe"  # tried on backbones without texts; it has no vote
ADAPTED = "ZSLP"  # a head that starts at zero-shot CLIP and stays near it
# Whose sums are a model: linear in features of unit length, or in similarities to images
VOTING = ZERO_SHOT, VISION, KERNEL, SENTENCES, ADAPTED, "GDA", "LPPlusPlus"
# Methods that are computed from all images at once, without training steps
CLOSED_FORM = ZERO_SHOT, SENTENCES, VISION, KERNEL, "GDA"
TITLES = {  # in a vote, for people
    ZERO_SHOT: "class names",
    SENTENCES: "sentences",
    VISION: "ridge on features",
    KERNEL: "kernel",
    ADAPTED: "ZS-LP",
    "LPPlusPlus": "LP++",
}
# Of the default ensemble; chosen on other data sets than those of docs/measurements/fit.md
ADAPTED_WEIGHT = 2.0  # of all adapted heads, for zero-shot CLIP's weight of 1
VISION_WEIGHT = 0.75  # of all heads without texts


@dataclass(frozen=True, eq=False)
class Candidate:
    """A method with settings to try.

    Attributes:
        method: its registered name.
        settings: of TRAINER.<NAME>.
        training: keys of OPTIM, of a head that learns by gradients.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        values = {**self.settings, **self.training}
        shown = (f"{key} {value}" for key, value in values.items() if key in SHOWN)
        return " ".join([self.method, *shown])


Weighted = Sequence[tuple[Candidate, float]]  # candidates, and the weights of their logits
SHOWN = "RIDGE", "ALPHA", "C", "STEP", "LR"
ONE = {"AUGMENT_EPOCH": 1}
SGD = {"NAME": "sgd", "WEIGHT_DECAY": 0.0, "MAX_EPOCH": 40}
CANDIDATES = (  # those that are computed at once come first
    Candidate(ZERO_SHOT),
    Candidate(SENTENCES),
    Candidate(VISION, {"RIDGE": 0.1}),
    Candidate(KERNEL, {"RIDGE": 0.1}),
    Candidate("GDA", {"ALPHA": 10.0, **ONE}),
    Candidate("LPPlusPlus", {"STEP": 30}),
    Candidate("ZSLP", ONE, SGD | {"LR": 0.3}),
    Candidate(LINEAR, {"C": 0.1}),
)


def ensemble(candidates: Sequence[Candidate], evidence: float) -> dict[int, float]:
    """The candidates that an ensemble may have, by their places, with their weights if nothing was
    held out.

    Names weigh as much as there is evidence for them: zero-shot CLIP, and heads that start from it.

    Args:
        candidates: the first is zero-shot CLIP.
        evidence: of the training images for it (`choice.evidence`).
    """
    voting = {place: one.method for place, one in enumerate(candidates) if one.method in VOTING}
    adapted = [place for place, method in voting.items() if method == ADAPTED]
    vision = [place for place, method in voting.items() if method in VISION_ONLY]
    weights = dict.fromkeys(voting, 0.0) | {0: evidence}
    learned = vision or adapted or [*voting][1:]
    if not learned:
        return {0: 1.0}
    for place in adapted:
        weights[place] += ADAPTED_WEIGHT * evidence / len(adapted)
    for place in learned:
        weights[place] += VISION_WEIGHT / len(learned)
    return weights


def used(
    candidates: Iterable[Candidate], weights: Iterable[float], scales: Mapping[Candidate, float]
) -> Weighted:
    """The candidates whose weight is not 0, with weights for their own logits; a single one is
    exported as it is.
    """
    chosen = [
        (candidate, weight / scales.get(candidate, 1.0))
        for candidate, weight in zip(candidates, weights, strict=False)
        if weight
    ]
    return chosen if len(chosen) > 1 else [(chosen[0][0], 1.0)]


def method_of_sum(candidates: Sequence[Candidate]) -> str:
    """Of which method the model is that sums candidates."""
    methods = {candidate.method for candidate in candidates}
    if KERNEL in methods:
        return KERNEL_ENSEMBLE
    return ENSEMBLE if VISION in methods else LINEAR_SUM


def settings_of(candidate: Candidate) -> CfgNode:
    """The configuration of a candidate, which nobody can change."""
    return configuration_of(
        candidate.method,
        *(tuple(part.items()) for part in (candidate.settings, candidate.training)),
    )


@lru_cache(100)  # those of all candidates
def configuration_of(method: str, settings: Pairs, training: Pairs) -> CfgNode:
    kind = trainers.predicting()[method]
    cfg = configuration(method)
    cfg.merge_from_other_cfg({"TRAINER": {kind.section(): {"PREC": "fp32", **dict(settings)}}})
    cfg.merge_from_other_cfg(
        {"OPTIM": {"MAX_EPOCH": 1, "LR_SCHEDULER": "cosine", **dict(training)}}
    )
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = BATCH
    cfg.freeze()
    return cfg
