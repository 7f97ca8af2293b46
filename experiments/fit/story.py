"""One fit from start to end: features, candidates, the choice, its estimate, and the folder that it leaves."""

import hashlib
import json
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import UsageError
from common.files import write_text
from common.names import printable
from inference.artefact import CALIBRATION
from inference.calibrated import Calibration, write_calibration
from inference.calibration import Sets, Temperature, Threshold
from inference.classifier import PromptedClassifier
from trainers.base import TEMPLATE
from trainers.base.features import CachedOutput
from trainers.base.teacher import mean_text_features

from . import choice, report
from .features import Features
from .found import Found
from .heads import CANDIDATES, LINEAR, ZERO_SHOT, Candidate, Heads
from .images import Photo, usable

METHODS = tuple(dict.fromkeys(candidate.method for candidate in CANDIDATES if candidate.method != ZERO_SHOT))
DEFAULT = "CLAP"  # its published settings are made for a fit without validation images


def fit(args: Namespace, photos: Sequence[Photo], keys: Mapping[str, str], asked: Mapping[str, Any]) -> None:
    """Write the model, the page and, last, the record.

    Args:
        keys: the SHA-256 of each image file by its path.
        asked: for the record.
    """
    names = sorted({photo.label for photo in photos if photo.part != "test"})
    zero_shot = PromptedClassifier.zero_shot(args.backbone, names)
    rows, damaged = Features(zero_shot).of(keys)
    images = usable(photos, {path: sha256 for path, (sha256, _) in rows.items()}, damaged)
    if images.names != names:
        zero_shot = PromptedClassifier.zero_shot(args.backbone, images.names)
    for line in [*images.warnings, *(f"Left out: {fault}" for fault in list(damaged.values())[:5])]:
        print(printable(line))
    clip: Any = zero_shot.clip
    texts = mean_text_features(clip, [[TEMPLATE.replace("{}", name)] for name in zero_shot.class_names])
    heads = Heads(zero_shot, texts, args.seed)
    candidates = [one for one in CANDIDATES if one.method in (ZERO_SHOT, *(args.methods or METHODS))]

    def of(*parts: str) -> tuple[Tensor, Tensor]:
        places = images.of(*parts)
        found = [rows[images.photos[place].path][1] for place in places]
        return torch.stack(found), torch.tensor(images.labels(places))

    found = Found(images)
    x, y = of("train", "val")
    decide(found, heads, candidates, x, y, args)
    facts = {"fit": found.name, "images": len(y)}
    facts |= {"estimated_accuracy": round(found.estimate.accuracy, 2)} if found.estimate else {}
    classifier = heads.classifier(found.chosen, x, y, facts)
    if images.of("test"):
        tested, labels = of("test")
        with torch.no_grad():
            answers = classifier.model_for(None)(CachedOutput(tested)).argmax(dim=1)
        found.test = {"images": len(labels), "accuracy": 100 * float((answers == labels).float().mean())}
    (args.to / CALIBRATION).unlink(missing_ok=True)  # of an earlier fit
    classifier.save(args.to)
    if found.calibration:
        write_calibration(args.to, found.calibration)
    write_text(args.to / "report.html", report.page(args, found))
    record = {"form": asked["form"], "finished": True, "request": asked, **found.to_json()}
    write_text(args.to / "fit.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for line in summary(args, found):
        print(line)


def decide(found: Found, heads: Heads, candidates: list[Candidate], x: Tensor, y: Tensor, args: Namespace) -> None:
    """Fill in the candidates, the choice among them, its estimate and its certainty.

    `x` (images, joint) are the features and `y` (images,) the labels of the training images.
    """
    labels = y.numpy()
    held = choice.folds(labels, args.seed)
    if not len(held):
        found.chosen = [(next((one for one in candidates if one.method == DEFAULT), candidates[-1]), 1.0)]
        found.notes.append("Each class has one image: none could be held out, nothing was chosen or estimated")
        return
    found.held = np.flatnonzero(held[0] != choice.NEVER)
    found.labels = labels[found.held]
    logits = tried(found, heads, candidates, x, y, held)
    stacked = np.stack(list(logits.values()))
    members = [place for place, one in enumerate(logits) if one.method in LINEAR]
    factors = choice.inverse_temperatures(stacked, found.labels)
    weights = choice.choose(stacked, found.labels, factors, members)
    if np.count_nonzero(weights) == 1:  # a single head is exported as it is
        weights = np.sign(weights)
    found.chosen = [(one, float(weight)) for one, weight in zip(logits, weights, strict=True) if weight]
    found.logits = choice.combine(weights, stacked)
    found.zero_shot = 100 * float(choice.right(stacked[0], found.labels).mean())
    found.curve = curve(found, heads, x, y, held[0])
    outside = choice.nested(stacked, found.labels, factors, held[:, found.held], members)
    folds = int(held.max()) + 1
    found.estimate = choice.estimate(outside, found.labels, folds, found.curve)
    found.flattered = choice.estimate(found.logits, found.labels, folds, found.curve).accuracy
    found.calibration = calibrate(found, args)


def tried(
    found: Found, heads: Heads, candidates: list[Candidate], x: Tensor, y: Tensor, held: NDArray[Any]
) -> dict[Candidate, NDArray[Any]]:
    """The logits (repeats, images, classes) of held-out images by each candidate that works."""
    in_folds = held[0] != choice.NEVER
    logits = {}
    print(f"{'candidate':<44} accuracy  seconds")
    for candidate in candidates:
        began = time.monotonic()
        try:
            logits[candidate] = heads.held_out(candidate, x, y, held)[:, in_folds].double().numpy()
        except (FloatingPointError, UsageError) as error:
            found.rows.append({"name": candidate.name, "fault": str(error)})
            print(f"{candidate.name:<44} left out: {error}")
            continue
        accuracy = 100 * float(choice.right(logits[candidate], y.numpy()[in_folds]).mean())
        seconds = time.monotonic() - began
        found.rows.append({"name": candidate.name, "accuracy": accuracy, "seconds": seconds})
        print(f"{candidate.name:<44} {accuracy:7.1f}% {seconds:8.1f}", flush=True)
    return logits


def curve(found: Found, heads: Heads, x: Tensor, y: Tensor, row: NDArray[Any]) -> list[tuple[float, float]]:
    """Images of each class, and the accuracy of the chosen classifier after learning from so many, on the folds."""
    points: list[tuple[float, float]] = []
    for share in (0.25, 0.5, 1.0):
        correct, sizes = [], []
        for fold in range(row.max() + 1):
            of_class = [np.flatnonzero((row != fold) & (y.numpy() == label)) for label in range(len(heads.names))]
            wanted = np.concatenate([part[: max(1, round(share * len(part)))] for part in of_class])
            out = np.flatnonzero(row == fold)
            seen = x[wanted], y[wanted]
            total: Any = sum(weight * heads.answers(one, seen, x[out]).detach() for one, weight in found.chosen)
            correct.append((total.argmax(dim=1) == y[out]).float())
            sizes.append(len(wanted) / len(heads.names))
        point = float(np.mean(sizes)), 100 * float(torch.cat(correct).mean())
        if not points or point[0] > points[-1][0]:
            points.append(point)
    if len(points) == 1:  # fewer than one image is none: zero-shot CLIP counts as a quarter of it
        points.insert(0, (points[0][0] / 4, found.zero_shot or 0.0))
    return points


def calibrate(found: Found, args: Namespace) -> Calibration:
    """Temperature, sets and threshold, from the logits of held-out images."""
    logits, labels, images = found.logits[0], found.labels, found.images
    threshold = None
    if args.max_error:
        try:
            threshold = Threshold.fit(logits, labels, args.max_error / 100)
        except UsageError as error:
            found.notes.append(f"--max-error {args.max_error:g}: {error}")
    fits = Temperature.fit(logits, labels), Sets.fit(logits, labels), threshold
    learned = images.of("train", "val")
    sha256 = hashlib.sha256("".join(images.pixels[learned[place]] for place in found.held).encode()).hexdigest()
    return Calibration(tuple(images.names), len(labels), sha256, "held-out training images", *fits)


def summary(args: Namespace, found: Found) -> list[str]:
    """The last lines on the terminal."""
    lines = [f"Chosen: {found.name}", *found.notes]
    if found.estimate:
        at, before = found.estimate, f"zero-shot CLIP {found.zero_shot:.1f}%"
        lines.append(f"Estimate: {at.accuracy:.1f}% of new images right (95%: {at.low:.1f} to {at.high:.1f}); {before}")
    if found.test:
        lines.append(f"Test images: {found.test['accuracy']:.1f}% of {found.test['images']:,} right")
    return [*lines, f"Written: {args.to}, with report.html"]
