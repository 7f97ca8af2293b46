"""The choice among the candidates, its estimate and its certainty."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import UsageError
from inference.calibration import Temperature, Threshold
from inference.sample import Sample
from inference.sets import Sets

from . import choose
from .candidates import Candidate, Weighted, ensemble, used
from .choose import Estimate, Option, Selection, select
from .estimate import curve, curve_seconds, estimate_by
from .heads import logit_std
from .options import PRIORS, FitRequest
from .plan import Plan
from .trials import Backbone, Examples, Trials, no_trials, try_candidates

LEAST_DRAWN = 10  # groups that were drawn at random, of an estimate


class Certainty(NamedTuple):
    """Fitted on the logits of held-out images; it knows no class names."""

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
        of_class: the mean number of groups of a class.
        zero_shot: the accuracy of zero-shot CLIP on the images that were held out.
        reads_names: whether the backbone does; else zero-shot CLIP guesses.
        without_nesting: what the estimate would be if the choice were not made inside of the folds.
        curve: groups of a class, and the accuracy of the chosen heads.
        apart: what the estimate would be if images with too little structure to decide showed other
            groups.
        backbones: if there are several, the name of each with the accuracy of the choice among its
            candidates on held-out images, and its price.
        notes: for the user.
    """

    chosen: Weighted
    trials: Trials | None = None
    logits: Any = None
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    of_class: float = 0.0
    zero_shot: float | None = None
    reads_names: bool = True
    without_nesting: float | None = None
    curve: Sequence[tuple[float, float]] = ()
    apart: float | None = None
    certainty: Certainty | None = None
    backbones: Sequence[dict[str, Any]] = ()
    notes: Sequence[str] = ()

    @property
    def rows(self) -> Sequence[dict[str, Any]]:
        """The results of each candidate."""
        return self.trials.rows if self.trials else ()

    @property
    def name(self) -> str:
        return " + ".join(candidate.name for candidate, _ in self.chosen)


@dataclass(frozen=True)
class Chosen:
    """The classifier of a backbone that its trials have chosen.

    Attributes:
        weights: (candidates,), of their logits in the trials.
        outside: (repeats, held, classes), the logits by a choice without the images of each fold.
        scales: by how much the logits of the heads that are used are larger than those in the
            trials.
    """

    backbone: Backbone
    trials: Trials
    weights: NDArray[Any]
    outside: NDArray[Any]
    scales: Mapping[Candidate, float]

    @property
    def weighted(self) -> Weighted:
        return used(self.trials.logits, self.weights, self.scales)

    @property
    def logits(self) -> NDArray[Any]:
        """(repeats, held, classes): the weighted sum of the logits of the candidates."""
        weighted = [
            float(weight * self.scales.get(candidate, 1.0)) * self.trials.logits[candidate]
            for candidate, weight in self.weighted
        ]
        return np.sum(weighted, axis=0)

    @property
    def of_class(self) -> float:
        """The mean number of groups of a class, of the images that can be held out."""
        examples = self.backbone.examples
        inside = self.trials.folds[0] != choose.NEVER
        return choose.groups_of_class(examples.labels[inside], examples.groups[inside])

    def part(self, inside: NDArray[np.bool_]) -> "Chosen":
        """The same of some of the images that were held out (held,)."""
        return replace(self, trials=self.trials.part(inside), outside=self.outside[:, inside])


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
    folds = choose.folds(examples.labels, examples.groups, request.seed)
    if not len(folds):
        return 0, untried(backbones[0])
    start = no_trials(examples, folds, request.prior, sum(len(one.candidates) for one in backbones))
    trials = [try_candidates(one, start, plan.of(one.name)) for one in backbones]
    options = [Option(one.stacked, one.ensemble) for one in trials]
    selection = select(options, start.sample, start.folds[:, start.held])
    place = selection.place
    scales = scales_of(trials[place], selection.weights, backbones[place])
    chosen = Chosen(backbones[place], trials[place], selection.weights, selection.outside, scales)
    if examples.drawn is None:
        decision = with_curve(estimated(chosen), chosen, request, plan.end)
    else:
        decision = of_draws(chosen, examples.drawn)
        if decision.trials is None:
            return place, decision
        selection = selection.part(examples.drawn[start.held])
    decision = with_certainty(decision, request)
    if len(backbones) > 1:
        decision = compared(decision, backbones, trials, selection)
    return place, replace(decision, reads_names=backbones[place].heads.reads_names)


def of_draws(chosen: Chosen, drawn: NDArray[np.bool_]) -> Decision:
    """`estimated`, on the images that were drawn at random (images,); without an estimate if they
    are few.
    """
    trials = chosen.trials
    inside = drawn[trials.held]
    number = len(np.unique(trials.sample.groups[inside]))
    if number < LEAST_DRAWN:
        note = (
            f"NO ESTIMATE, no calibration and no sets: {number} of the groups that could be held "
            f"out were drawn at random, and {LEAST_DRAWN} are needed. The others were chosen to be "
            "labelled"
        )
        return Decision(chosen.weighted, notes=[note])
    decision = estimated(chosen.part(inside))
    note = (
        f"The estimate, the calibration and the sets are of the {drawn.sum():,} images that were "
        f"drawn at random: the other {(~drawn).sum():,} were chosen to be labelled, and new images "
        "are not like them. There is no learning curve"
    )
    decision = replace(decision, notes=[*decision.notes, note])
    alone = drawn & (trials.folds[0] == choose.NEVER)
    if not alone.any():
        return decision
    return with_missed(decision, chosen.backbone.examples, alone, number)


def with_missed(
    decision: Decision, examples: Examples, alone: NDArray[np.bool_], held: int
) -> Decision:
    """The decision, in which images that are `alone` in their class (images,) count as wrong beside
    `held` groups: without such an image nobody had known that there is this class.
    """
    missed = len(np.unique(examples.groups[alone]))
    classes = len(np.unique(examples.labels[examples.drawn]))
    shares = {
        "folder": missed / (missed + held),
        "equal": len(np.unique(examples.labels[alone])) / classes,
    }
    estimates = {
        prior: choose.with_missed(found, shares[prior])
        for prior, found in decision.estimates.items()
    }
    note = f"The estimate counts {missed} of these as wrong, which are alone in their class"
    return replace(decision, estimates=estimates, notes=[*decision.notes, note])


def scales_of(trials: Trials, weights: NDArray[Any], backbone: Backbone) -> dict[Candidate, float]:
    """By how much the logits of the heads that are used are larger than those of the trials."""
    examples = backbone.examples
    answered = examples.x if trials.some is None else examples.x[trials.some]
    scales = {}
    for candidate, weight in zip(trials.logit_stds, weights, strict=False):
        if weight:
            logits = backbone.heads.answers(candidate, examples.seen, answered)
            scales[candidate] = trials.logit_stds[candidate] * logit_std(logits)
    return scales


def compared(
    decision: Decision,
    backbones: Sequence[Backbone],
    trials: Sequence[Trials],
    selection: Selection,
) -> Decision:
    """The decision with what the other backbones reach."""
    assert decision.trials is not None
    rows = []
    candidates = []
    for backbone, own, logits, score in zip(
        backbones, trials, selection.logits, selection.scores, strict=True
    ):
        name = {"backbone": backbone.name}
        rows.append(name | choose.accuracy_of(logits, decision.trials.sample) | {"score": score})
        candidates += [row | name for row in own.rows]
    return replace(decision, trials=replace(decision.trials, rows=candidates), backbones=rows)


def untried(backbone: Backbone) -> Decision:
    """The default ensemble, for classes of one group each."""
    heads = backbone.heads
    examples = backbone.examples
    candidates = backbone.candidates
    answers = heads.answers(candidates[0], examples.seen, examples.x)
    scale = logit_std(answers)
    shares = default_shares(candidates, answers.cpu().double().numpy() / scale, examples)
    scales = {
        one: logit_std(heads.answers(one, examples.seen, examples.x))
        * heads.overfit_ratio(one, examples.seen)
        for one in shares
    }
    # The sum of the logits has the spread of zero-shot CLIP.
    values = np.array([*shares.values()])
    chosen = used(shares, scale * values / values.sum(), scales)
    why = f"Each class has one {examples.unit}: none could be held out"
    return Decision(chosen, notes=[f"{why}, nothing was chosen, estimated or calibrated"])


def default_shares(
    candidates: Sequence[Candidate], by_names: NDArray[Any], examples: Examples
) -> dict[Candidate, float]:
    """The candidates of the default ensemble, with their weights.

    Args:
        by_names: (images, classes), logits of zero-shot CLIP, the first candidate.
    """
    evidence = choose.evidence(by_names, Sample.of(examples.labels, examples.groups))
    weights = ensemble(candidates, evidence)
    shares = {candidates[place]: weight for place, weight in weights.items() if weight}
    if [*shares] == [candidates[0]]:
        return {candidates[-1]: 1.0}
    return shares


def estimated(chosen: Chosen) -> Decision:
    """The decision with its estimates."""
    trials = chosen.trials
    of_class = chosen.of_class
    logits = chosen.logits
    correct_by_names = choose.correct(trials.stacked[0], trials.sample.labels)
    folds = trials.number_of_folds
    estimates = {}
    for prior in PRIORS:
        sample = Sample.of(trials.sample.labels, trials.sample.groups, prior)
        zero_shot = 100 * sample.mean(correct_by_names)
        estimates[prior] = choose.estimate(chosen.outside, sample, folds, zero_shot, of_class)
    sample = trials.sample
    zero_shot = 100 * sample.mean(correct_by_names)
    return Decision(
        chosen=chosen.weighted,
        trials=trials,
        logits=logits,
        estimates=estimates,
        of_class=of_class,
        zero_shot=zero_shot,
        without_nesting=choose.estimate(logits, sample, folds, zero_shot, of_class).accuracy,
        notes=trials.notes,
    )


def with_curve(decision: Decision, chosen: Chosen, request: FitRequest, end: float) -> Decision:
    """The decision with the learning curve of its heads and, if groups are in doubt, the estimate
    without these; as far as there is time until `end`.
    """
    zero_shot = decision.zero_shot
    assert zero_shot is not None
    backbone = chosen.backbone
    trials = chosen.trials
    heads = replace(chosen, weights=weights_of_heads(chosen))
    points = [(0.0, zero_shot)]
    if time.monotonic() + curve_seconds(trials, heads.weighted) < end:
        points += curve(backbone, heads.weighted, trials.folds[0], request.prior)
    points.append(full_point(heads))
    decision = replace(decision, curve=points)
    certain = backbone.examples.certain
    if certain is None or not chosen.scales or time.monotonic() >= end:
        return decision
    apart = estimate_by(certain, backbone, heads.weighted, zero_shot, request)
    return replace(decision, apart=apart)


def full_point(heads: Chosen) -> tuple[float, float]:
    """Groups of each class in all folds but one, and the accuracy of heads that have learned from
    these.
    """
    sample = heads.trials.sample
    correct = heads.logits[0].argmax(axis=1) == sample.labels
    folds = heads.trials.number_of_folds
    return heads.of_class * (folds - 1) / folds, 100 * sample.mean(correct.astype(float))


def weights_of_heads(chosen: Chosen) -> NDArray[Any]:
    """(heads,): the weights of the heads; if none is chosen, of their best ensemble."""
    trials = chosen.trials
    weights = chosen.weights[: trials.heads]
    if not chosen.scales:
        weights = choose.vote(trials.stacked[: trials.heads], trials.sample, trials.ensemble())
    if not weights.any():  # only a trained method is better than names that mislead
        weights = np.eye(trials.heads)[0]
    return weights


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
    fit_sets = Sets.fit_by_class if request.coverage == "per-class" else Sets.fit
    sets = fit_sets(logits, sample.labels, sample=sample)
    return replace(decision, certainty=Certainty(temperature, sets, threshold), notes=notes)
