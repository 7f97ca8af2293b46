"""One fit from start to end: features, candidates, the choice, its estimate, and the folder that it
leaves.
"""

import json
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

import numpy as np
import torch
from dassl.utils import ChangedImageError
from numpy.typing import NDArray
from torch import Tensor

from common.errors import UsageError
from common.files import write_text
from common.lock import locked
from common.names import printable
from common.results import SEEN
from common.version import source
from datasets import sentences as sentence_files
from fit import choice, groups, report
from inference.artefact import CALIBRATION
from inference.calibrated import Calibration, sha256_of_images
from inference.calibration import Sample, Sets, Temperature, Threshold
from inference.classifier import PromptedClassifier
from inference.seen import SeenImages
from trainers.base.features import CachedOutput

from .command import FILE, PRIORS, checksums
from .features import Features, Row
from .found import Found
from .groups import numbers
from .heads import CANDIDATES, SENTENCES, ZERO_SHOT, Candidate, Heads, TooLong, members, spread
from .images import Photo
from .plan import Plan
from .towers import TRAINED, Towers

METHODS = tuple(dict.fromkeys(one.method for one in (*CANDIDATES, *TRAINED)))
OF_PROJECTION = {"RLA", "ProLIP"}  # they need a backbone with a projection of image features
MOST_LOGITS = 2 * 10**8  # of all candidates, repeats, images and classes together: 0.8 GB
EXACT = 10**7  # numbers of a candidate that are computed with in double precision
# Of the minutes, for trying heads; the others are for the choice, its estimate and the export
HEADS_SHARE = 0.7
Planned = Iterable[tuple[Candidate, Callable[[], Tensor] | str]]


def fit(  # noqa: PLR0915
    args: Namespace, photos: Sequence[Photo], keys: Mapping[str, str], record: dict[str, Any]
) -> None:
    """Write the model, the page and, last, the record.

    Args:
        keys: the SHA-256 of each image file by its path.
        record: the content of fit.json so far: the request and, of a fit that was killed, its plan.

    Raises:
        UsageError: fewer than two classes have an image that can be used, or the sentences or MODEL
            cannot be used.
    """

    def heads_of(names: Sequence[str]) -> Heads:
        options = {"device": args.device, "sentences": sentence_files.read(args.sentences, names)}
        return Heads(PromptedClassifier.zero_shot(args.backbone, names, **options), args.seed)

    began = time.monotonic()
    deadline = began + 60 * args.minutes
    heads = heads_of(sorted({photo.label for photo in photos if photo.part != "test"}))
    encoder = Features(heads.zero_shot, heads.tower)
    rows, damaged = encoder.of(keys)
    found = Found.of(photos, {path: row.pixels_sha256 for path, row in rows.items()}, damaged)
    if found.names != heads.names:
        heads = heads_of(found.names)
    if args.groups == "auto":
        found.set_groups(*groups.find(found.images, rows))
    else:
        found.notes.append(
            "GROUPS ARE OFF (--groups none): near-copies count as if they were of different scenes"
        )
    features = torch.stack([rows[photo.path].feature for photo in found.images]).to(
        heads.zero_shot.device
    )
    labels = torch.tensor(found.label_numbers(found.images), device=features.device)
    (x, test_x), (y, test_y) = (
        all_rows.tensor_split([len(found.training)]) for all_rows in (features, labels)
    )
    names_of_methods = {ZERO_SHOT, SENTENCES, *(args.methods or METHODS)}
    names_of_methods -= (set() if args.sentences else {SENTENCES}) | (
        set() if heads.projection else OF_PROJECTION
    )
    candidates, trained = (
        [one for one in part if one.method in names_of_methods] for part in (CANDIDATES, TRAINED)
    )
    towers = Towers(heads, found, keys)
    with locked(args.to, option="--to"):
        write_text(args.to / FILE, json.dumps(record) + "\n")
        until = began + HEADS_SHARE * 60 * args.minutes
        limits = (until, deadline) if args.minutes else ()
        plan = Plan(args.to / FILE, record, *limits)
        decide(
            found,
            heads,
            candidates,
            x,
            y,
            args,
            partial(towers.planned, trained, deadline, plan),
            plan,
        )
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        made = {**source(), "date": date, "seed": args.seed, "device": heads.zero_shot.device.type}
        chosen = found.chosen[0][0]
        facts = {"fit": found.name, "images": len(y), **made}
        facts |= {"estimated_accuracy": round(found.estimate.accuracy, 2)} if found.estimate else {}
        if chosen in TRAINED:
            classifier = heads.exported(chosen.method, facts, towers.fit(chosen, np.arange(len(y))))
        else:
            classifier = heads.classifier(found.chosen, x, y, facts)
        if len(test_y):
            inputs = CachedOutput(heads.inputs(classifier.method, test_x))
            paths = [photo.path for photo in found.images[len(y) :]]
            if_trained = (classifier.logits(batch) for batch in towers.pixels(paths))
            answers = (
                torch.cat([*if_trained]) if chosen in TRAINED else classifier.model_for()(inputs)
            )
            found.set_test((answers.argmax(dim=1) == test_y).cpu().numpy())
        for name in (CALIBRATION, SEEN):  # of an earlier fit
            (args.to / name).unlink(missing_ok=True)
        classifier.calibration = found.calibration
        classifier.save(args.to)
        role = "chosen" if chosen.method in heads.fixed else "learned"
        seen_images(found, rows, role).write(args.to)
        write_text(args.to / "report.html", report.page(args, found))
        write_text(args.to / "labels.csv", report.labels_csv(found))
        # The same call again does not lack these images
        request = {} if encoder.changed else record["request"]
        record = {
            "form": record["form"],
            "finished": True,
            "request": request,
            "made": made,
            "model": checksums(args.to),
        }
        record |= found.to_json() | report.details(found)
        write_text(args.to / FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for line in summary(args, found):
        print(printable(line))


def seen_images(found: Found, rows: Mapping[str, Row], role: str) -> SeenImages:
    """What the model has seen: training images, in this role, and test images."""

    def of(photos: Sequence[Photo], role: str) -> SeenImages:
        sha256 = [photo.pixels_sha256 for photo in photos]
        signatures = [rows[photo.path].signature for photo in photos]
        labels = found.label_numbers(photos)
        return SeenImages.of(sha256, signatures, labels, role, numbers(photos).tolist())

    count = len(found.training)
    return of(found.images[:count], role) + of(found.images[count:], "tested")


def decide(  # noqa: C901, PLR0913, PLR0915
    found: Found,
    heads: Heads,
    candidates: Sequence[Candidate],
    x: Tensor,
    y: Tensor,
    args: Namespace,
    planned: Callable[[NDArray[Any]], Planned] = lambda row: (),
    plan: Plan | None = None,
) -> None:
    """Fill in the candidates, the choice among them, its estimate and its certainty.

    Args:
        x: (images, width), the features of the training images.
        y: (images,), their labels.
        planned: from the fold of each image to more candidates, each with what computes its logits
            (images, classes), or with the reason why there are none.
        plan: how much time there is for heads, and which ones take too long.
    """
    plan = plan or Plan()
    labels = y.cpu().numpy()
    scenes = numbers(found.training)
    held = choice.folds(labels, scenes, args.seed)
    zero_shot = heads.answers(candidates[0], (x, y), x)
    doubt = choice.losses(zero_shot.cpu().double().numpy()[None], labels) - math.log(
        len(heads.names)
    )
    if not len(held):
        excess = Sample.of(labels, scenes).mean(doubt)
        shares = {
            candidates[place]: share
            for place, share in members(candidates, excess).items()
            if share
        }
        if [*shares] == [candidates[0]]:
            shares = {candidates[-1]: 1.0}
        scales = {one: spread(heads.answers(one, (x, y), x)) for one in shares}
        # The sum of the logits has the spread of zero-shot CLIP.
        found.chosen = used(shares, spread(zero_shot) * np.array([*shares.values()]), scales)
        kind = "image" if len(np.unique(scenes)) == len(y) else "scene"
        found.notes.append(
            f"Each class has one {kind}: none could be held out, nothing was chosen or estimated"
        )
        return
    found.held = to_choose_on(held, scenes, len(heads.names), len(candidates))
    if len(found.held) < (held[0] != choice.NEVER).sum():
        found.notes.append(
            f"{len(found.held):,} images choose and estimate, as more would need too much memory"
        )
    found.sample = Sample.of(labels[found.held], scenes[found.held], args.prior)
    if alone := [name for place, name in enumerate(heads.names) if place not in found.labels]:
        kind = "image" if len(np.unique(scenes)) == len(y) else "scene"
        found.notes.append(f"No estimate is of the classes with one {kind}: {', '.join(alone)}")
    print(f"{'candidate':<44} accuracy  seconds")

    def head(one: Candidate) -> Callable[[], Tensor]:
        return partial(
            heads.held_out,
            one,
            x,
            y,
            held,
            math.inf if one.method in heads.fixed else plan.deadline,
        )

    of_candidates = ((one, plan.too_long.get(one.name) or head(one)) for one in candidates)
    logits = tried(found, of_candidates, plan)
    shape = next(iter(logits.values())).shape
    of_heads = len(logits)
    logits |= tried(found, planned(held[0]), plan)
    stacked = np.stack([np.broadcast_to(one, shape) for one in logits.values()])
    sample = found.sample

    def members_of(inside: NDArray[Any]) -> dict[int, float]:
        return members(list(logits), sample.part(inside).mean(doubt[found.held][inside]))

    in_ensemble = members_of(np.ones(len(found.held), dtype=bool))
    weights = choice.choose(stacked, sample, in_ensemble)
    learned = [one for one, weight in zip(list(logits)[:of_heads], weights, strict=False) if weight]
    scales = {one: spread(heads.answers(one, (x, y), x)) for one in learned}
    found.chosen = used(logits, weights, scales)
    found.logits = np.sum(
        [weight * scales.get(one, 1.0) * logits[one] for one, weight in found.chosen], axis=0
    )
    outside = choice.nested(stacked, sample, held[:, found.held], members_of)
    folds = int(held.max()) + 1
    can_be_held = held[0] != choice.NEVER
    found.of_class = choice.groups_of_class(labels[can_be_held], scenes[can_be_held])
    for prior in PRIORS:
        of_prior = Sample.of(sample.labels, sample.groups, prior)
        names_only = 100 * of_prior.mean(choice.right(stacked[0], sample.labels))
        found.estimates[prior] = choice.estimate(
            outside, of_prior, folds, names_only, found.of_class
        )
    found.estimate = found.estimates[args.prior]
    found.zero_shot = accuracy = 100 * sample.mean(choice.right(stacked[0], sample.labels))
    found.without_nesting = choice.estimate(
        found.logits, sample, folds, accuracy, found.of_class
    ).accuracy
    best = weights[:of_heads] if learned else choice.stack(stacked[:of_heads], sample, in_ensemble)
    if not best.any():  # only a trained method is better than names that mislead
        best = np.eye(of_heads)[0]
    heads_used = used(logits, best, scales)
    found.curve = [(0.0, accuracy)]
    if time.monotonic() + curve_seconds(found, heads_used) < plan.end:
        found.curve += curve(heads, heads_used, x, y, held[0], scenes, args.prior)
    found.curve.append(full_point(found, heads_used, scales, logits, folds))
    if found.grouped and learned and time.monotonic() < plan.end:
        found.ungrouped = ungrouped(heads, heads_used, x, y, accuracy, args)
    found.note_groups()
    found.calibration = calibrate(found, args)


def ungrouped(
    heads: Heads,
    chosen: Sequence[tuple[Candidate, float]],
    x: Tensor,
    y: Tensor,
    zero_shot: float,
    args: Namespace,
) -> float:
    """What the estimate would be if images of one scene could be in several folds."""
    labels = y.cpu().numpy()
    row = choice.folds(labels, np.arange(len(labels)), args.seed)[0]
    held = row != choice.NEVER
    logits = np.zeros((1, len(labels), len(heads.names)))
    for fold in range(row.max() + 1):
        seen = torch.from_numpy(row != fold).to(y.device)
        out = torch.from_numpy(row == fold).to(y.device)
        for one, weight in chosen:
            logits[0, row == fold] += (
                weight * heads.answers(one, (x[seen], y[seen]), x[out]).cpu().numpy()
            )
    sample = Sample.of(labels[held], prior=args.prior)
    of_class = len(sample.labels) / len(np.unique(sample.labels))
    return choice.estimate(
        logits[:, held], sample, int(row.max()) + 1, zero_shot, of_class
    ).accuracy


def used(
    candidates: Iterable[Candidate], weights: NDArray[Any], scales: Mapping[Candidate, float]
) -> list[tuple[Candidate, float]]:
    """The candidates whose weight is not 0, with weights for their own logits; a single one is
    exported as it is.
    """
    chosen = [
        (one, weight / scales.get(one, 1.0))
        for one, weight in zip(candidates, weights, strict=False)
        if weight
    ]
    return chosen if len(chosen) > 1 else [(chosen[0][0], 1.0)]


def to_choose_on(
    held: NDArray[Any], scenes: NDArray[Any], classes: int, candidates: int
) -> NDArray[Any]:
    """The places of images whose logits are kept: those that are held out, or so many scenes as
    memory has room for.
    """
    places = np.flatnonzero(held[0] != choice.NEVER)
    room = MOST_LOGITS // (len(held) * classes * (candidates + 1))
    if len(places) <= room:
        return places
    of_scenes = np.unique(scenes[places])
    share = room / len(places)
    chosen = np.random.default_rng(0).permutation(of_scenes)[: max(2, int(share * len(of_scenes)))]
    return places[np.isin(scenes[places], chosen)]


def tried(found: Found, candidates: Planned, plan: Plan) -> dict[Candidate, NDArray[Any]]:
    """The logits (repeats, images, classes) of held-out images by each candidate that works."""
    logits = {}
    for candidate, compute in candidates:
        began = time.monotonic()
        try:
            if isinstance(compute, str):
                raise UsageError(compute)
            computed = compute().numpy()
        except TooLong as error:
            plan.write(too_long={candidate.name: str(error)})
            found.candidates.append({"name": candidate.name, "fault": str(error)})
            print(f"{candidate.name:<44} left out: {error}")
            continue
        except ChangedImageError:  # no candidate is at fault
            raise
        except (FloatingPointError, UsageError) as error:
            found.candidates.append({"name": candidate.name, "fault": str(error)})
            print(f"{candidate.name:<44} left out: {error}")
            continue
        kept = computed.reshape(-1, *computed.shape[-2:])[:, found.held]
        logits[candidate] = kept.astype(float) if kept.size < EXACT else kept
        accuracy = 100 * found.sample.mean(choice.right(logits[candidate], found.labels))
        low, high = choice.interval(accuracy, found.sample.size)
        row = {"name": candidate.name, "accuracy": accuracy, "low": low, "high": high}
        found.candidates.append(row | {"seconds": (seconds := time.monotonic() - began)})
        print(f"{candidate.name:<44} {accuracy:7.1f}% {seconds:8.1f}", flush=True)
    return logits


def curve(
    heads: Heads,
    chosen: Sequence[tuple[Candidate, float]],
    x: Tensor,
    y: Tensor,
    row: NDArray[Any],
    groups: NDArray[Any],
    prior: str,
) -> list[tuple[float, float]]:
    """Groups of each class, and the accuracy of some heads after learning from so many, on the
    folds `row`.
    """
    labels = y.cpu().numpy()
    points: dict[float, float] = {}
    for share in (0.25, 0.5):
        correct = []
        held = []
        sizes = []
        for fold in range(row.max() + 1):
            out = np.flatnonzero(row == fold)
            seen = some_groups(labels, groups, row != fold, share)
            total: Any = sum(
                weight * heads.answers(one, (x[seen], y[seen]), x[out]) for one, weight in chosen
            )
            correct.append((total.argmax(dim=1) == y[out]).double().cpu().numpy())
            held.append(out)
            sizes.append(choice.groups_of_class(labels[seen], groups[seen]))
        places = np.concatenate(held)
        accuracy = Sample.of(labels[places], groups[places], prior).mean(np.concatenate(correct))
        points.setdefault(float(np.mean(sizes)), 100 * accuracy)
    return list(points.items())


def curve_seconds(found: Found, chosen: Sequence[tuple[Candidate, float]]) -> float:
    """About how long `curve` takes: less than a repeat of the folds by these heads took."""
    names = {one.name for one, _ in chosen}
    return (
        sum(row["seconds"] for row in found.candidates if row["name"] in names and "seconds" in row)
        / 2
    )


def full_point(
    found: Found,
    chosen: Sequence[tuple[Candidate, float]],
    scales: Mapping[Candidate, float],
    logits: Mapping[Candidate, NDArray[Any]],
    folds: int,
) -> tuple[float, float]:
    """Groups of each class in all folds but one, and the accuracy of heads that have learned from
    these.
    """
    total = np.sum(
        [weight * scales.get(one, 1.0) * logits[one][0] for one, weight in chosen], axis=0
    )
    correct = (total.argmax(axis=1) == found.labels).astype(float)
    return found.of_class * (folds - 1) / folds, 100 * found.sample.mean(correct)


def some_groups(
    labels: NDArray[Any], groups: NDArray[Any], inside: NDArray[Any], share: float
) -> NDArray[Any]:
    """The places of a share of the groups of each class, of those `inside` (images,); of each class
    one or more.
    """
    found = []
    for label in np.unique(labels):
        places = np.flatnonzero(inside & (labels == label))
        own = np.unique(groups[places])
        few = own[: max(1, round(share * len(own)))]
        found.append(places[np.isin(groups[places], few)])
    return np.concatenate(found)


def calibrate(found: Found, args: Namespace) -> Calibration:
    """Temperature, sets and threshold, from the logits of held-out images."""
    logits = found.logits[0]
    labels = found.labels
    sample = found.sample
    threshold = None
    if args.max_error:
        try:
            threshold = Threshold.fit(logits, labels, args.max_error / 100, sample=sample)
        except UsageError as error:
            found.notes.append(f"--max-error {args.max_error:g}: {error}")
    temperature = Temperature.fit(logits, labels, sample.weights)
    if found.estimate:  # the model has learned from more images than those of the folds
        gained = (found.estimate.accuracy - found.estimate.cross_validated) / 100
        temperature = temperature.surer(logits, gained, sample.weights)
    fits = temperature, Sets.fit(logits, labels, sample=sample), threshold
    images = (found.images[place] for place in found.held)
    sha256 = sha256_of_images((photo.sha256, photo.label) for photo in images)
    return Calibration(tuple(found.names), len(labels), sha256, "held-out training images", *fits)


def summary(args: Namespace, found: Found) -> list[str]:
    """The last lines on the terminal."""
    damaged = [f"Left out: {fault}" for fault in found.damaged.values()]
    lines = [*damaged[:5], *(["..."] if damaged[5:] else []), *found.notes, f"Chosen: {found.name}"]
    lines += filter(None, [found.grouped])
    if found.estimate:
        at = found.estimate
        before = f"zero-shot CLIP {found.zero_shot:.1f}%"
        lines.append(
            f"Estimate: {at.accuracy:.1f}% of new images right (95%: {at.low:.1f} to "
            f"{at.high:.1f}); {before}"
        )
        if other := found.other_estimate(args.prior):
            mix = (
                "classes are equally frequent"
                if args.prior == PRIORS[0]
                else "classes are as frequent as here"
            )
            lines.append(
                f"Estimate if {mix}: {other.accuracy:.1f}% (95%: {other.low:.1f} to "
                f"{other.high:.1f})"
            )
    if found.test:
        if found.test["accuracy"] is not None:
            lines.append(
                f"Test images: {found.test['accuracy']:.1f}% of {found.test['images']:,} right"
            )
        lines += filter(None, [found.surprise])
    return [*lines, f"Written: {args.to}, with report.html"]
