"""Cross-conformal sets: for each fold, the fit is made again without its images."""

import io
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from common.errors import UsageError
from inference.classifier import PromptedClassifier
from trainers.base.features import CachedOutput

from .decision import decide_among
from .plan import Plan
from .request import PRIORS, SETS, FitRequest
from .rows import ASKED, Photo
from .trials import Backbone, Trials


def check_cross(request: FitRequest, found: Sequence[Photo]) -> None:
    """Raise UsageError if cross-conformal sets are asked for where their guarantee would not hold,
    as images were chosen to be labelled, or trainings would have to be made again for each fold; or
    if no image can be held out.
    """
    are_chosen = request.prior != PRIORS[0] or any(photo.asked == ASKED[0] for photo in found)
    if request.sets == SETS[1] and (request.minutes or request.others or are_chosen):
        fault = "--sets cross is for heads on one backbone, and images as they come"
        remedy = "give --minutes 0 and one --backbone; no --prior equal, no images that were chosen"
        raise UsageError(fault, remedy)
    of_class = Counter(photo.label for photo in found if photo.part != "test")
    if request.sets == SETS[1] and max(of_class.values(), default=0) < 2:
        fault = "--sets cross holds images out, and no class has two"
        raise UsageError(fault, "give two or more images of each class, or leave it out")


def add_cross_sets(
    classifier: PromptedClassifier, backbone: Backbone, trials: Trials, request: FitRequest
) -> None:
    """Give a calibrated classifier cross-conformal sets, and the models of the folds.

    Each of these is chosen and learned without the images of its fold, by folds of the others. One
    image of each scene, the first one, has a score.
    """
    assert classifier.calibration is not None
    examples = backbone.examples
    scored = trials.held[np.unique(examples.scenes[trials.held], return_index=True)[1]]
    folds = trials.folds[0]
    logits = np.empty((len(scored), len(examples.names)))
    for fold in range(trials.number_of_folds):
        out = folds[scored] == fold
        model = chosen_again(backbone, folds != fold, request)
        answers = model.logits_with_folds(CachedOutput(examples.x[scored[out]]))
        logits[out] = answers[:, 0].detach().cpu()
        classifier.folds.append(model)
    classifier.calibration = replace(
        classifier.calibration,
        sets=classifier.calibration.sets.of_folds(logits, examples.labels[scored], folds[scored]),
    )


def chosen_again(
    backbone: Backbone, inside: NDArray[np.bool_], request: FitRequest
) -> PromptedClassifier:
    """The classifier that is chosen and learned by some of the images (images,)."""
    examples = backbone.examples
    part = replace(
        examples, x=examples.x[inside], y=examples.y[inside], scenes=examples.scenes[inside]
    )
    with redirect_stdout(io.StringIO()):
        _, decision = decide_among([replace(backbone, examples=part)], request, Plan(end=0.0))
    return backbone.heads.classifier(decision.chosen, part.seen, {})
