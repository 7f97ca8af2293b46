"""One fit from start to end: features, candidates, the choice, its estimate, and the folder that it leaves."""

import hashlib
import json
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.cache import DiskCache
from common.errors import UsageError
from common.files import write_text
from common.names import printable
from inference.calibrated import Calibration, write_calibration
from inference.calibration import Sets, Temperature, Threshold
from inference.classifier import PromptedClassifier, with_spaces
from trainers.base import TEMPLATE
from trainers.base.features import CachedOutput, get_tensor, put_tensor
from trainers.base.teacher import cache_folder, mean_text_features

from . import choice
from .features import Features
from .heads import CANDIDATES, LINEAR, ZERO_SHOT, Candidate, Heads
from .images import Images, Photo, usable

METHODS = tuple(dict.fromkeys(candidate.method for candidate in CANDIDATES if candidate.method != ZERO_SHOT))
DEFAULT = next(
    candidate for candidate in CANDIDATES if candidate.method == "CLAP"
)  # made for settings without a choice
LIMIT = 5e9  # bytes of kept logits
SUSPECTS = 50  # images that the record names
Weighted = Sequence[tuple[Candidate, float]]


@dataclass
class Found:
    """What a fit has found; the content of fit.json and of the page.

    Attributes:
        rows: each candidate, best first: name, accuracy (of images that it has not learned from, percent), seconds,
            fault.
        chosen: names and weights.
        logits: (repeats, images, classes), of the training images that were held out, by their places `held`.
    """

    images: Images
    rows: list[dict[str, Any]] = field(default_factory=list)
    chosen: Weighted = ()
    estimate: choice.Estimate | None = None
    zero_shot: float | None = None
    flattered: float | None = None
    test: dict[str, Any] | None = None
    curve: list[tuple[float, float]] = field(default_factory=list)
    held: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    logits: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0, 0)))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    calibration: Calibration | None = None
    notes: list[str] = field(default_factory=list)


def fit(args: Namespace, photos: Sequence[Photo], keys: Mapping[str, str], asked: Mapping[str, Any]) -> None:
    """Write the model, the page and, last, the record."""
    names = sorted({photo.label for photo in photos if photo.part != "test"})
    zero_shot = PromptedClassifier.zero_shot(args.backbone, with_spaces(names))
    features = Features(zero_shot)
    rows, damaged = features.of(keys)
    images = usable(photos, {path: sha256 for path, (sha256, _) in rows.items()}, damaged)
    for line in [*images.warnings, *(f"Left out: {printable(fault)}" for fault in list(damaged.values())[:5])]:
        print(line)
    if images.names != names:
        zero_shot = PromptedClassifier.zero_shot(args.backbone, with_spaces(images.names))
    texts = mean_text_features(zero_shot.clip, list(zero_shot.class_names), (TEMPLATE,))
    heads = Heads(zero_shot, texts, args.seed)
    found = Found(images)
    learned, tests = images.of("train", "val"), images.of("test")
    x, tested = (
        torch.stack([rows[images.photos[place].path][1] for place in places]) if places else None
        for places in (learned, tests)
    )
    y = np.array(images.labels(learned))
    candidates = [
        one for one in CANDIDATES if one.method == ZERO_SHOT or not args.methods or one.method in args.methods
    ]
    decide(found, heads, candidates, x, y, args, [images.pixels[place] for place in learned], features.facts)
    classifier = heads.classifier(found.chosen, x, torch.from_numpy(y), facts(found))
    if tested is not None:
        found.test = test(classifier, tested, np.array(images.labels(tests)))
    leave(args, found, classifier, asked)


def decide(found, heads, candidates, x, y, args, pixels, facts) -> None:
    """Fill in the leaderboard, the choice and its estimate."""
    held = choice.folds(y, args.seed)
    if not len(held):
        found.chosen = [(DEFAULT if DEFAULT in candidates else candidates[-1], 1.0)]
        found.notes.append(
            "Each class has one image, so that nothing could be held out: nothing was chosen, and there is no estimate"
        )
        return
    in_folds = held[0] != choice.NEVER
    labels = y[in_folds]
    tried, logits = [], []
    kept = DiskCache(cache_folder(), "fit", "logits of candidates", LIMIT)
    base = hashlib.sha256(json.dumps([facts, pixels, y.tolist(), held.tolist(), heads.names, heads.seed]).encode())
    print(f"{'candidate':<44} accuracy  seconds")
    for candidate in candidates:
        began = time.monotonic()
        digest = base.copy()
        digest.update(repr(candidate).encode())
        key, shape = digest.hexdigest()[:32], (*held.shape, len(heads.names))
        answers = get_tensor(kept, key, shape, torch.float32)
        try:
            if answers is None:
                answers = heads.held_out(candidate, x, torch.from_numpy(y), held)
                put_tensor(kept, key, answers)
        except (FloatingPointError, UsageError) as error:
            found.rows.append({"name": candidate.name, "fault": str(error)})
            print(f"{candidate.name:<44} left out: {error}")
            continue
        tried.append(candidate)
        logits.append(answers[:, torch.from_numpy(in_folds)].double().numpy())
        accuracy = 100 * choice.right(logits[-1], labels).mean()
        seconds = time.monotonic() - began
        found.rows.append({"name": candidate.name, "accuracy": accuracy, "seconds": seconds})
        print(f"{candidate.name:<44} {accuracy:7.1f}% {seconds:8.1f}", flush=True)
    stacked = np.stack(logits)
    members = [place for place, one in enumerate(tried) if one.method in LINEAR]
    weights = choice.choose(stacked, labels, members)
    if np.count_nonzero(weights) == 1:  # a single head is exported as it is
        weights = np.sign(weights)
    found.chosen = [(tried[place], float(weights[place])) for place in np.flatnonzero(weights)]
    found.held, found.labels = np.flatnonzero(in_folds), labels
    found.logits = choice.combine(weights, stacked)
    found.flattered = 100 * float(choice.right(found.logits, labels).mean())
    found.zero_shot = 100 * float(choice.right(stacked[0], labels).mean())
    found.curve = curve(heads, found.chosen, x, y, held)
    if len(found.curve) < 2:  # of one image, nothing is fewer; zero-shot CLIP counts as a quarter of it
        found.curve.insert(0, (found.curve[0][0] / 4, found.zero_shot))
    outside = choice.nested(stacked, labels, held[:, in_folds], members)
    found.estimate = choice.estimate(outside, labels, int(held.max()) + 1, found.curve)
    found.calibration = calibrate(found, args)


def curve(heads: Heads, chosen: Weighted, x: Tensor, y: NDArray[Any], held: NDArray[Any]) -> list[tuple[float, float]]:
    """Images of each class, and the accuracy (percent) of the chosen classifier with so many; on the folds."""
    points = []
    labels, row = torch.from_numpy(y), held[0]
    for share in (0.25, 0.5, 1.0):
        correct, sizes = [], []
        for fold in range(row.max() + 1):
            inside = np.flatnonzero(row != fold)
            wanted = np.concatenate(
                [
                    part[: max(1, round(share * len(part)))]
                    for part in (inside[y[inside] == label] for label in range(len(heads.names)))
                ]
            )
            out = np.flatnonzero(row == fold)
            total = sum(
                weight * heads.answers(one, (x[wanted], labels[wanted]), x[out]).detach() for one, weight in chosen
            )
            correct.append((total.argmax(dim=1) == labels[out]).float())
            sizes.append(len(wanted) / len(heads.names))
        point = float(np.mean(sizes)), 100 * float(torch.cat(correct).mean())
        if not points or point[0] > points[-1][0]:
            points.append(point)
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
            print(found.notes[-1])
    learned = images.of("train", "val")
    sha256 = hashlib.sha256("".join(images.pixels[learned[place]] for place in found.held).encode()).hexdigest()
    return Calibration(
        tuple(name.replace("_", " ") for name in images.names), len(labels), sha256, "held-out training images",
        Temperature.fit(logits, labels), Sets.fit(logits, labels), threshold,
    )  # fmt: skip


def facts(found: Found) -> dict[str, Any]:
    """What the exported folder says of the training."""
    words = " + ".join(candidate.name for candidate, _ in found.chosen)
    shown: dict[str, Any] = {"fit": words, "images": len(found.images.of("train", "val"))}
    if found.estimate:
        shown |= {"estimated_accuracy": round(found.estimate.accuracy, 2)}
    return shown


def test(classifier: PromptedClassifier, features: Tensor, labels: NDArray[Any]) -> dict[str, Any]:
    """The accuracy on test images, which no choice has seen."""
    with torch.no_grad():
        answers = classifier.model_for(None)(CachedOutput(features)).argmax(dim=1).numpy()
    return {"images": len(labels), "accuracy": 100 * float((answers == labels).mean())}


def leave(args: Namespace, found: Found, classifier: PromptedClassifier, asked: Mapping[str, Any]) -> None:
    """Write everything; the record is the last file."""
    classifier.save(args.to)
    if found.calibration:
        write_calibration(args.to, found.calibration)
    record = {
        "form": asked["form"],
        "finished": True,
        "request": asked,
        "chosen": [
            {"name": one.name, "method": one.method, "settings": dict(one.settings), "weight": weight}
            for one, weight in found.chosen
        ],
        "estimate": asdict(found.estimate) if found.estimate else None,
        "zero_shot": found.zero_shot,
        "without_nesting": found.flattered,
        "test": found.test,
        "curve": found.curve,
        "candidates": found.rows,
        "notes": [*found.images.warnings, *found.notes],
        "damaged": found.images.damaged,
        "images": [
            {"path": photo.path, "class": photo.label, "part": photo.part, "pixels_sha256": sha256}
            for photo, sha256 in zip(found.images.photos, found.images.pixels, strict=True)
        ],
    }
    write_text(args.to / "fit.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    name = " + ".join(candidate.name for candidate, _ in found.chosen)
    print(f"Chosen: {name}")
    if found.estimate:
        e, before = found.estimate, f"zero-shot CLIP {found.zero_shot:.1f}%"
        print(f"Estimate: {e.accuracy:.1f}% of new images right (95%: {e.low:.1f} to {e.high:.1f}); {before}")
    if found.test:
        print(f"Test images: {found.test['accuracy']:.1f}% of {found.test['images']:,}")
    print(f"Written: {args.to}")
