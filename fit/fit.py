"""One fit from start to end: features, candidates, the choice, its estimate, and the folder that it
leaves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from shutil import rmtree
from typing import Any

import numpy as np
import torch

from common.errors import UsageError, check_name
from common.files import write_json, write_text
from common.lock import locked
from common.results import CALIBRATION, SEEN
from common.version import made
from inference.classifier import PromptedClassifier
from trainers.base.features import CachedOutput

from . import report
from .candidates import CANDIDATES, CLOSED_FORM, LINEAR, SENTENCES, ZERO_SHOT, Candidate
from .decision import decide_among
from .features import EncodedImage, Source, features_of, heads_of, price, read_by_all, sources_of
from .heads import Heads, reads_names
from .options import FitRequest
from .photos import Photos, find_groups, looks_known
from .plan import Plan
from .read_images import Photo
from .record import FILE, FORM, PAGE, TABLE, checksums
from .result import Fit, Tested
from .trained import TRAINED, Towers
from .trials import Backbone, Examples

METHODS = tuple(dict.fromkeys(one.method for one in (*CANDIDATES, *TRAINED)))
# Images times classes: with more, each epoch of a head takes minutes, and heads that are computed
# at once are tried
MOST_TRAINED = 5 * 10**6


@dataclass(frozen=True, kw_only=True)
class Learner(Backbone):
    """A backbone with its features of the images, and with what learns from the images."""

    source: Source
    towers: Towers


def fit(
    request: FitRequest,
    found: Sequence[Photo],
    record: Mapping[str, Any],
    known: Sequence[Photo] = (),
) -> Fit:
    """Write the model, the page and, last, the record.

    Args:
        found: the images with the SHA-256 of their files.
        record: the content of fit.json so far (`record_of`).
        known: images of an earlier fit, which must be readable.

    Raises:
        UsageError: fewer than two classes have images, a known image is gone, or sentences or MODEL
            are invalid.
    """
    check_methods(request.methods)
    plan = Plan(request.to / FILE, record, request.minutes)
    sources, ms = sources_of(request, found, plan.ms)
    rows, damaged = read_by_all(sources)
    lost = [photo.path for photo in known if photo.path in damaged]
    if lost:
        fault = f"{len(lost)} images of the earlier fit are gone, such as {lost[0]}"
        raise UsageError(fault, "restore them, or call fit with all images")
    photos = photos_of(request, found, rows, damaged)
    with locked(request.to, option="--to"):
        plan.write(ms=ms)
        learners = [learner_of(one, photos, plan, len(sources) > 1) for one in sources]
        place, decision = decide_among(learners, request, plan)
        learner = learners[place]
        priced = [row | price(row["backbone"], ms[row["backbone"]]) for row in decision.backbones]
        notes = [*decision.notes, *left_out(request, photos, len(sources) > 1)]
        decision = replace(decision, backbones=priced, notes=notes)
        asked = record["request"]
        if any(source.encoder.changed for source in sources):
            # The same call again does not lack changed images
            asked = asked | {"images": ""}
        return written(Fit(learner.source.request, photos, decision), learner, asked)


def written(result: Fit, learner: Learner, asked: Mapping[str, Any]) -> Fit:
    """The result with its test, after it has been written.

    Args:
        asked: what the result depends on (`record.facts`).
    """
    provenance = {**made(), "seed": result.request.seed, "device": learner.heads.device.type}
    classifier = final_classifier(result, provenance, learner)
    if result.photos.tested:
        result = replace(result, test=tested(result, classifier, learner))
    details = report.details(result)
    write_model(result, classifier, learner)
    folder = result.request.to
    write_text(folder / PAGE, report.page(result, details, learner.examples.x))
    write_text(folder / TABLE, report.labels_csv(result))
    content = {"form": FORM, "finished": True, "request": asked, "made": provenance}
    content |= {"model": checksums(folder)} | result.to_json() | details
    write_json(folder / FILE, content, ensure_ascii=False)
    return result


def check_methods(names: Sequence[str]) -> None:
    """Raise UsageError for a method that is not known."""
    for name in names:
        check_name(name, METHODS, "method")


def learner_of(source: Source, photos: Photos, plan: Plan, several: bool) -> Learner:
    """What learns on a backbone, which may be one of several: then heads alone, as prompts and
    adapters would have to be trained for each of them. Methods that train on images need these.
    """
    request = source.request
    heads = source.heads
    if heads.names != photos.names:  # a class was left out
        heads = heads_of(request, photos.names, heads.clip)
    x = features_of(photos.training, source.rows).to(heads.device)
    y = torch.tensor(photos.label_numbers(photos.training), device=x.device)
    examples = Examples(x, y, photos.groups, photos.names, photos.drawn, photos.certain)
    candidates = methods_of(request, CANDIDATES, heads, len(y))
    trained: Sequence[Candidate] = ()
    if request.minutes and not several and not photos.from_bank:
        trained = methods_of(request, TRAINED, heads, len(y))
    towers = Towers(heads, photos)
    return Learner(
        request.backbone if several else "",
        heads,
        examples,
        candidates,
        partial(towers.planned, trained, plan),
        source=source,
        towers=towers,
    )


def left_out(request: FitRequest, photos: Photos, several: bool) -> Iterator[str]:
    """Which candidates were not tried, for the user."""
    images = len(photos.training)
    if images * len(photos.names) > MOST_TRAINED and not request.methods:
        not_tried = (
            f"Heads that train were not tried on {images:,} images of {len(photos.names):,} classes"
        )
        yield f"{not_tried}: name some by --methods to try them"
    if several and request.minutes:
        yield "Of several backbones heads alone were compared: name one to train prompts, too"


def photos_of(
    request: FitRequest,
    found: Sequence[Photo],
    rows: Mapping[str, EncodedImage],
    damaged: Mapping[str, str],
) -> Photos:
    """The images that can be used, in groups."""
    photos = Photos.usable(found, rows, damaged)
    notes = [*photos.notes]
    if request.minutes and photos.from_bank:
        notes.append("Prompts and CLIP-LoRA were not tried: a bank has no images")
    looks = looks_known(found, rows)
    if request.groups == "auto":
        photos = photos.in_groups(find_groups(photos.images, rows, looks))
    if request.groups != "auto" or not looks:
        why = "--groups none" if looks else "a bank that was written without --near-copies"
        notes.append(f"GROUPS ARE OFF ({why}): near-copies count as different images")
    return replace(photos, notes=notes, looks=looks)


def methods_of(
    request: FitRequest, candidates: Sequence[Candidate], heads: Heads, images: int = 0
) -> list[Candidate]:
    """The candidates that the user asks for, and that the backbone and the sentences permit."""
    wanted = {ZERO_SHOT, SENTENCES, *(request.methods or METHODS)}
    if not request.sentences:
        wanted.remove(SENTENCES)
    if images * len(heads.names) > MOST_TRAINED and not request.methods:
        wanted.intersection_update(CLOSED_FORM)
    if heads.reads_names and not request.methods:
        wanted.discard(LINEAR)
    if not heads.reads_names:
        wanted = {ZERO_SHOT, *(name for name in wanted if not reads_names(name))}
    return [candidate for candidate in candidates if candidate.method in wanted]


def final_classifier(
    result: Fit, provenance: Mapping[str, Any], learner: Learner
) -> PromptedClassifier:
    """The chosen classifier after learning from all training images, with its calibration."""
    heads = learner.heads
    decision = result.decision
    images = len(result.photos.training)
    facts = {"fit": decision.name, "images": images, **provenance}
    if result.estimate:
        facts["estimated_accuracy"] = round(result.estimate.accuracy, 2)
    candidate, _ = decision.chosen[0]
    if candidate in TRAINED:
        method = learner.towers.fit(candidate, np.arange(images))
        classifier = heads.exported(candidate.method, facts, method)
    else:
        classifier = heads.classifier(decision.chosen, learner.examples.seen, facts)
    classifier.calibration = result.calibration
    return classifier


def tested(result: Fit, classifier: PromptedClassifier, learner: Learner) -> Tested:
    """How many of the test images the classifier answers right."""
    photos = result.photos
    candidate, _ = result.decision.chosen[0]
    if candidate in TRAINED:
        batches = learner.towers.pixels([photo.path for photo in photos.tested])
        logits = torch.cat([classifier.logits(batch) for batch in batches])
    else:
        features = features_of(photos.tested, learner.source.rows).to(classifier.device)
        inputs = learner.heads.inputs(classifier.method, features)
        logits = classifier.model_for()(CachedOutput(inputs))
    answers = logits.argmax(dim=1).cpu().numpy()
    return Tested.of(photos, answers == np.array(photos.label_numbers(photos.tested)))


def write_model(result: Fit, classifier: PromptedClassifier, learner: Learner) -> None:
    """Write the exported form with what the model has seen, in the place of an earlier fit's."""
    fixed = learner.heads.fixed
    learns = any(candidate.method not in fixed for candidate, _ in result.decision.chosen)
    role = "learned" if learns else "chosen"
    folder = result.request.to
    rmtree(folder / "folds", ignore_errors=True)  # models of an older version; no link is followed
    for name in (CALIBRATION, SEEN):
        (folder / name).unlink(missing_ok=True)
    classifier.save(folder)
    photos = result.photos
    if photos.looks:
        rows = learner.source.rows
        seen = photos.seen(photos.training, rows, role)
        seen += photos.seen(photos.tested, rows, "tested")
        seen.write(folder)
