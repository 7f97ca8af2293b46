"""The choice among the candidates, its estimate and its certainty."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UsageError
from inference.calibration import Sets, Temperature, Threshold
from inference.sample import Sample

from . import choice
from .candidates import Candidate, members
from .choice import Estimate
from .curve import curve, curve_seconds, full_point, ungrouped
from .heads import Heads, spread
from .options import choose_each, nested
from .plan import Plan
from .request import PRIORS, FitRequest
from .trials import Backbone, Examples, Trials, folds_of, try_candidates

LEAST_DRAWN = 10  # scenes that were drawn at random, of an estimate


@dataclass(frozen=True)
class Certainty:
    """What is fitted on the logits of held-out images; it knows no class names."""

    temperature: Temperature
    sets: Sets
    threshold: Threshold | None


@dataclass(frozen=True)
class Decision:
    """The chosen classifier, and what is known of it. Accuracies are in percent.

    Attributes:
        chosen: candidates and the weights of their logits.
        trials: what it was chosen on; None if no image could be held out. Nothing else is known
            then.
        logits: (repeats, held, classes), of the chosen classifier.
        estimates: of the accuracy on new images, by how frequent the classes are.
        of_class: the mean number of scenes of a class.
        zero_shot: the accuracy of zero-shot CLIP on the images that were held out.
        reads_names: whether the backbone does; else zero-shot CLIP guesses.
        without_nesting: what the estimate would be if the choice were not made inside of the folds.
        curve: scenes of a class, and the accuracy of the chosen heads.
        ungrouped: what the estimate would be if images of one scene were in several folds.
        backbones: if there are several, the name of each with the accuracy of the choice among its
            candidates on held-out images, and its price.
        notes: for the user.
    """

    chosen: Sequence[tuple[Candidate, float]]
    trials: Trials | None = None
    logits: Any = None
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    of_class: float = 0.0
    zero_shot: float | None = None
    reads_names: bool = True
    without_nesting: float | None = None
    curve: Sequence[tuple[float, float]] = ()
    ungrouped: float | None = None
    certainty: Certainty | None = None
    backbones: Sequence[dict[str, Any]] = ()
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        return " + ".join(candidate.name for candidate, _ in self.chosen)


def decide(
    heads: Heads, examples: Examples, candidates: Sequence[Candidate], request: FitRequest
) -> Decision:
    """`decide_among` the candidates of one backbone."""
    return decide_among([Backbone("", heads, examples, candidates)], request)[1]


def decide_among(
    backbones: Sequence[Backbone], request: FitRequest, plan: Plan | None = None
) -> tuple[int, Decision]:
    """Try the candidates, choose among them, and estimate the accuracy of the choice.

    Args:
        plan: how much time there is for heads, and which ones take too long.

    Returns:
        The place of the chosen backbone, and the decision.
    """
    plan = plan or Plan()
    examples = backbones[0].examples
    folds, repeats = folds_of(examples, request.seed)
    if not repeats:
        return 0, untried(backbones[0].heads, examples, backbones[0].candidates)
    trials = tried(backbones, folds, plan, request.prior)
    options = [one.option for one in trials]
    sample = trials[0].sample
    everything = np.ones(len(sample.labels), dtype=bool)
    scores, weights = choose_each(options, sample, everything, [None] * len(options))
    best = int(np.argmin(scores))
    found, chosen_backbones = nested(options, sample, trials[0].of_folds)
    outside = np.take_along_axis(found, chosen_backbones[None, :, :, None], axis=0)[0]
    heads = backbones[best].heads
    examples = backbones[best].examples
    scales = scales_of(trials[best], weights[best], heads, examples)
    chosen = used(trials[best].logits, weights[best], scales)
    scenes = of_class(examples, folds)
    own = trials[best].of_images(outside, repeats, examples.labels)
    outside = outside[:repeats]
    if examples.drawn is None:
        decision = estimated(own, chosen, scales, scenes, outside)
        decision = with_curve(decision, heads, examples, weights[best], scales, request, plan.end)
    else:
        decision = of_draws(own, chosen, scales, scenes, outside, examples)
        if decision.trials is None:
            return best, decision
        found = found[:, :, examples.drawn[trials[best].held]]
    decision = replace(with_certainty(decision, request), reads_names=heads.reads_names)
    if len(backbones) > 1:
        decision = compared(decision, backbones, trials, found, scores)
    return best, decision


def of_draws(
    trials: Trials,
    chosen: Sequence[tuple[Candidate, float]],
    scales: Mapping[Candidate, float],
    of_class: float,
    outside: NDArray[Any],
    examples: Examples,
) -> Decision:
    """`estimated`, on the images that were drawn at random; without an estimate if they are few."""
    drawn = examples.drawn
    assert drawn is not None
    inside = drawn[trials.held]
    number = len(np.unique(trials.sample.groups[inside]))
    if number < LEAST_DRAWN:
        return Decision(chosen, notes=[without_draws(number)])
    decision = estimated(trials.part(inside), chosen, scales, of_class, outside[:, inside])
    decision = replace(decision, notes=[*decision.notes, of_some(drawn)])
    alone = drawn & (trials.folds[0] == choice.NEVER)
    return with_missed(decision, examples, alone, number) if alone.any() else decision


def with_missed(
    decision: Decision, examples: Examples, alone: NDArray[np.bool_], held: int
) -> Decision:
    """The decision, in which images that are `alone` in their class (images,) count as wrong beside
    `held` scenes: without such an image nobody had known that there is this class.
    """
    missed = len(np.unique(examples.scenes[alone]))
    classes = len(np.unique(examples.labels[examples.drawn]))
    shares = {
        "folder": missed / (missed + held),
        "equal": len(np.unique(examples.labels[alone])) / classes,
    }
    estimates = {
        prior: choice.with_missed(found, shares[prior])
        for prior, found in decision.estimates.items()
    }
    note = f"The estimate counts {missed} of these as wrong, which are alone in their class"
    return replace(decision, estimates=estimates, notes=[*decision.notes, note])


def without_draws(number: int) -> str:
    """Why there is no estimate."""
    return (
        f"NO ESTIMATE, no calibration and no sets: {number} of the scenes that could be held out "
        f"were drawn at random, and {LEAST_DRAWN} are needed. The others were chosen to be labelled"
    )


def of_some(drawn: NDArray[np.bool_]) -> str:
    """What the estimate is of."""
    return (
        f"The estimate, the calibration and the sets are of the {drawn.sum():,} images that were "
        f"drawn at random: the other {(~drawn).sum():,} were chosen to be labelled, and new images "
        "are not like them. There is no learning curve"
    )


def tried(
    backbones: Sequence[Backbone], folds: NDArray[np.int64], plan: Plan, prior: str
) -> list[Trials]:
    """The trials of the candidates of each backbone."""
    number = sum(len(one.candidates) for one in backbones)
    found = []
    for one in backbones:
        if one.name:
            print(f"Backbone {one.name}")
        found.append(try_candidates(one, folds, plan.of(one.name), prior, number))
    return found


def scales_of(
    trials: Trials, weights: NDArray[Any], heads: Heads, examples: Examples
) -> dict[Candidate, float]:
    """By how much the logits of the heads that are used are larger than those of the trials."""
    answered = examples.x if trials.some is None else examples.x[trials.some]
    return {
        candidate: trials.spreads[candidate]
        * spread(heads.answers(replace(candidate, offset=0.0), (examples.x, examples.y), answered))
        for candidate, weight in zip(trials.of_heads, weights, strict=False)
        if weight
    }


def compared(
    decision: Decision,
    backbones: Sequence[Backbone],
    trials: Sequence[Trials],
    found: NDArray[Any],
    scores: Sequence[float],
) -> Decision:
    """The decision with what the other backbones reach.

    Args:
        found: (backbones, repeats, held, classes), by `options.nested`.
        scores: that the choice among backbones was made by.
    """
    assert decision.trials is not None
    sample = decision.trials.sample
    rows = []
    candidates = []
    for backbone, own, logits, score in zip(backbones, trials, found, scores, strict=True):
        accuracy = 100 * sample.mean(choice.right(logits, sample.labels))
        low, high = choice.interval(accuracy, sample.size)
        row = {"backbone": backbone.name, "accuracy": accuracy, "low": low, "high": high}
        rows.append(row | {"score": score})
        candidates += [row | {"backbone": backbone.name} for row in own.rows]
    return replace(decision, trials=replace(decision.trials, rows=candidates), backbones=rows)


def untried(heads: Heads, examples: Examples, candidates: Sequence[Candidate]) -> Decision:
    """The default ensemble, for classes of one scene each."""
    candidates = [one for one in candidates if not one.pool]
    zero_shot = candidates[0]
    learned_from = examples.x, examples.y
    by_names = heads.answers(zero_shot, learned_from, examples.x)
    scale = spread(by_names)
    sample = Sample.of(examples.labels, examples.scenes)
    evidence = choice.evidence(by_names.cpu().double().numpy() / scale, sample)
    shares = {
        candidates[place]: share for place, share in members(candidates, evidence).items() if share
    }
    if [*shares] == [zero_shot] and not examples.lacks_images:
        shares = {candidates[-1]: 1.0}
    scales = {
        one: spread(heads.answers(one, learned_from, examples.x))
        * heads.freshness(one, *learned_from)
        for one in shares
    }
    # The sum of the logits has the spread of zero-shot CLIP.
    weights = np.array([*shares.values()])
    chosen = used(shares, scale * weights / weights.sum(), scales)
    what = f"Each class has one {examples.unit}: none could be held out"
    note = f"{what}, nothing was chosen or estimated"
    return Decision(chosen, notes=[note])


def used(
    candidates: Iterable[Candidate], weights: NDArray[Any], scales: Mapping[Candidate, float]
) -> list[tuple[Candidate, float]]:
    """The candidates whose weight is not 0, with weights for their own logits; a single one is
    exported as it is.
    """
    chosen = [
        (candidate, weight / scales.get(candidate, 1.0))
        for candidate, weight in zip(candidates, weights, strict=False)
        if weight
    ]
    return chosen if len(chosen) > 1 else [(chosen[0][0], 1.0)]


def of_class(examples: Examples, folds: NDArray[Any]) -> float:
    """The mean number of scenes of a class, of the images that can be held out."""
    inside = folds[0] != choice.NEVER
    return choice.groups_of_class(examples.labels[inside], examples.scenes[inside])


def combined(
    trials: Trials,
    chosen: Sequence[tuple[Candidate, float]],
    scales: Mapping[Candidate, float],
) -> NDArray[Any]:
    """(repeats, held, classes): the weighted sum of the logits of the chosen candidates."""
    of_each = [float(weight * scales.get(one, 1.0)) * trials.logits[one] for one, weight in chosen]
    return np.sum(of_each, axis=0)


def estimated(
    trials: Trials,
    chosen: Sequence[tuple[Candidate, float]],
    scales: Mapping[Candidate, float],
    of_class: float,
    outside: NDArray[Any],
) -> Decision:
    """The decision with its estimates.

    Args:
        outside: (repeats, held, classes), the logits by a choice without the images of each fold.
    """
    logits = combined(trials, chosen, scales)
    correct_by_names = choice.right(trials.stacked[0], trials.sample.labels)
    folds = trials.number_of_folds
    estimates = {}
    for prior in PRIORS:
        sample = Sample.of(trials.sample.labels, trials.sample.groups, prior)
        zero_shot = 100 * sample.mean(correct_by_names)
        estimates[prior] = choice.estimate(outside, sample, folds, zero_shot, of_class)
    sample = trials.sample
    zero_shot = 100 * sample.mean(correct_by_names)
    return Decision(
        chosen=chosen,
        trials=trials,
        logits=logits,
        estimates=estimates,
        of_class=of_class,
        zero_shot=zero_shot,
        without_nesting=choice.estimate(logits, sample, folds, zero_shot, of_class).accuracy,
        notes=trials.notes,
    )


def with_curve(
    decision: Decision,
    heads: Heads,
    examples: Examples,
    weights: NDArray[Any],
    scales: Mapping[Candidate, float],
    request: FitRequest,
    end: float,
) -> Decision:
    """The decision with the learning curve of its heads and, if images are in groups, the estimate
    without these; as far as there is time until `end`.
    """
    trials = decision.trials
    assert trials is not None and decision.zero_shot is not None
    best = weights[: trials.heads]
    if not scales:
        best = choice.stack(trials.stacked[: trials.heads], trials.sample, trials.members())
    if not best.any():  # only a trained method is better than names that mislead
        best = np.eye(trials.heads)[0]
    of_heads = used(trials.logits, best, scales)
    points = [(0.0, decision.zero_shot)]
    if time.monotonic() + curve_seconds(trials, of_heads) < end:
        points += curve(heads, of_heads, examples, trials.folds[0], request.prior)
    points.append(full_point(trials, of_heads, scales, decision.of_class))
    without_groups = None
    if examples.unit == "scene" and scales and time.monotonic() < end:
        without_groups = ungrouped(
            heads, of_heads, examples, decision.zero_shot, request.seed, request.prior
        )
    return replace(decision, curve=points, ungrouped=without_groups)


def with_certainty(decision: Decision, request: FitRequest) -> Decision:
    """The decision with a temperature, sets and a threshold, from the logits of held-out images."""
    trials = decision.trials
    assert trials is not None
    logits = decision.logits[0]
    sample = trials.sample
    notes = [*decision.notes]
    threshold = None
    if request.max_error:
        try:
            threshold = Threshold.fit(logits, sample.labels, request.max_error / 100, sample=sample)
        except UsageError as error:
            notes.append(f"--max-error {request.max_error:g}: {error}")
    # The model has learned from more images than those of the folds
    estimate = decision.estimates[request.prior]
    gained = (estimate.accuracy - estimate.cross_validated) / 100
    temperature = Temperature.fit(logits, sample.labels, sample.weights)
    temperature = temperature.surer(logits, gained, sample.weights)
    fit_sets = Sets.fit_by_class if request.coverage_by == "class" else Sets.fit
    sets = fit_sets(logits, sample.labels, sample=sample)
    return replace(decision, certainty=Certainty(temperature, sets, threshold), notes=notes)
