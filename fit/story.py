"""One fit from start to end: features, candidates, the choice, its estimate, and the folder that it
leaves.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from clip import CLIP, is_vit
from common.errors import check_name
from common.files import write_text
from common.lock import locked
from common.results import CALIBRATION, SEEN
from common.version import source
from datasets import sentences as sentence_files
from inference.classifier import PromptedClassifier
from inference.seen import SeenImages
from trainers.base.features import CachedOutput

from . import groups, report
from .candidates import CANDIDATES, SENTENCES, ZERO_SHOT, Candidate
from .decision import decide
from .features import Features, Row
from .groups import numbers
from .heads import Heads
from .images import Photo
from .photos import Photos
from .plan import Plan
from .record import FILE, FORM, checksums
from .request import FitRequest
from .result import Fit, Tested
from .towers import TRAINED, Towers
from .trials import Examples

METHODS = tuple(dict.fromkeys(one.method for one in (*CANDIDATES, *TRAINED)))
# They need a backbone with a projection of image features. Wide features, which other towers than
# those of CLIP often have, make them the slowest heads: then they are tried if they are named
OF_PROJECTION = {"RLA", "ProLIP"}
# Of the minutes, for trying heads; the others are for the choice, its estimate and the export
HEADS_SHARE = 0.7


def fit(request: FitRequest, found: Sequence[Photo], record: dict[str, Any]) -> Fit:
    """Write the model, the page and, last, the record.

    Args:
        found: the images with the SHA-256 of their files.
        record: the content of fit.json so far: the request and, of a fit that was killed, its plan.

    Raises:
        UsageError: fewer than two classes have an image that can be used, or the sentences or MODEL
            cannot be used.
    """
    for name in request.methods:
        check_name(name, METHODS, "method")
    began = time.monotonic()
    end = began + 60 * request.minutes
    names = sorted({photo.label for photo in found if photo.part != "test"})
    heads = heads_of(request, names)
    encoder = Features(heads.zero_shot, heads.tower)
    rows, damaged = encoder.of({photo.path: photo.sha256 for photo in found})
    photos = photos_of(request, found, rows, damaged)
    if photos.names != names:
        heads = heads_of(request, photos.names, heads.clip)
    x = features_of(photos.training, rows).to(heads.zero_shot.device)
    y = torch.tensor(photos.label_numbers(photos.training), device=x.device)
    examples = Examples(x, y, photos.scenes, photos.names)
    towers = Towers(heads, photos, {photo.path: photo.sha256 for photo in found})
    candidates = methods_of(request, CANDIDATES, heads)
    trained = methods_of(request, TRAINED, heads) if request.minutes else []
    with locked(request.to, option="--to"):
        write_text(request.to / FILE, json.dumps(record) + "\n")
        limits = (began + HEADS_SHARE * 60 * request.minutes, end) if request.minutes else ()
        plan = Plan(request.to / FILE, record, *limits)
        planned = partial(towers.planned, trained, end, plan)
        result = Fit(request, photos, decide(heads, examples, candidates, request, planned, plan))
        made = provenance(request, heads)
        classifier = final_classifier(result, made, heads, towers, examples)
        if photos.tested:
            answers = answers_for_tests(result, classifier, heads, towers, rows)
            labels = np.array(photos.label_numbers(photos.tested))
            result = replace(result, test=Tested.of(photos, answers == labels))
        write_model(result, classifier, rows, heads)
        # The same call again does not lack images that have changed
        asked = {} if encoder.changed else record["request"]
        write_record(result, asked, made)
    return result


def heads_of(request: FitRequest, names: Sequence[str], clip: CLIP | None = None) -> Heads:
    """The heads on zero-shot CLIP for these classes; the backbone may be loaded already."""
    sentences = sentence_files.read(request.sentences, names)
    zero_shot = PromptedClassifier.zero_shot(
        request.backbone, names, device=request.device, sentences=sentences, clip=clip
    )
    return Heads(zero_shot, request.seed)


def photos_of(
    request: FitRequest,
    found: Sequence[Photo],
    rows: Mapping[str, Row],
    damaged: Mapping[str, str],
) -> Photos:
    """The images that can be used, in groups."""
    pixels = {path: row.pixels_sha256 for path, row in rows.items()}
    photos = Photos.usable(found, pixels, damaged)
    if request.groups == "auto":
        return photos.in_groups(*groups.find(photos.images, rows))
    note = "GROUPS ARE OFF (--groups none): near-copies count as if they were of different scenes"
    return replace(photos, notes=[*photos.notes, note])


def features_of(photos: Sequence[Photo], rows: Mapping[str, Row]) -> Tensor:
    """(photos, width), on the CPU."""
    return torch.stack([rows[photo.path].feature for photo in photos])


def methods_of(
    request: FitRequest, candidates: Sequence[Candidate], heads: Heads
) -> list[Candidate]:
    """The candidates that the user asks for, and that the backbone and the sentences permit."""
    wanted = {ZERO_SHOT, SENTENCES, *(request.methods or METHODS)}
    if not request.sentences:
        wanted.remove(SENTENCES)
    own_tower = is_vit(heads.clip) or isinstance(heads.clip.visual, ModifiedResNet)
    if not heads.projection or not (own_tower or request.methods):
        wanted -= OF_PROJECTION
    return [candidate for candidate in candidates if candidate.method in wanted]


def provenance(request: FitRequest, heads: Heads) -> dict[str, Any]:
    """By which version, when, and on what the fit was made."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    device = heads.zero_shot.device.type
    return {**source(), "date": date, "seed": request.seed, "device": device}


def final_classifier(
    result: Fit, made: Mapping[str, Any], heads: Heads, towers: Towers, examples: Examples
) -> PromptedClassifier:
    """The chosen classifier after learning from all training images, with its calibration."""
    decision = result.decision
    facts = {"fit": decision.name, "images": len(examples.labels), **made}
    if result.estimate:
        facts["estimated_accuracy"] = round(result.estimate.accuracy, 2)
    candidate, _ = decision.chosen[0]
    if candidate in TRAINED:
        method = towers.fit(candidate, np.arange(len(examples.labels)))
        classifier = heads.exported(candidate.method, facts, method)
    else:
        classifier = heads.classifier(decision.chosen, examples.x, examples.y, facts)
    classifier.calibration = result.calibration
    return classifier


def answers_for_tests(
    result: Fit,
    classifier: PromptedClassifier,
    heads: Heads,
    towers: Towers,
    rows: Mapping[str, Row],
) -> NDArray[np.int64]:
    """(test images,): the numbers of the classes that the classifier answers."""
    photos = result.photos.tested
    candidate, _ = result.decision.chosen[0]
    if candidate in TRAINED:
        batches = towers.pixels([photo.path for photo in photos])
        logits = torch.cat([classifier.logits(batch) for batch in batches])
    else:
        features = features_of(photos, rows).to(heads.zero_shot.device)
        inputs = heads.inputs(classifier.method, features)
        logits = classifier.model_for()(CachedOutput(inputs))
    return logits.argmax(dim=1).cpu().numpy()


def write_model(
    result: Fit, classifier: PromptedClassifier, rows: Mapping[str, Row], heads: Heads
) -> None:
    """The exported form, with what the model has seen and the page."""
    folder = result.request.to
    for name in (CALIBRATION, SEEN):  # of an earlier fit
        (folder / name).unlink(missing_ok=True)
    classifier.save(folder)
    candidate, _ = result.decision.chosen[0]
    role = "chosen" if candidate.method in heads.fixed else "learned"
    photos = result.photos
    seen = seen_images(photos, photos.training, rows, role)
    seen += seen_images(photos, photos.tested, rows, "tested")
    seen.write(folder)
    write_text(folder / "report.html", report.page(result))
    write_text(folder / "labels.csv", report.labels_csv(result))


def seen_images(
    photos: Photos, part: Sequence[Photo], rows: Mapping[str, Row], role: str
) -> SeenImages:
    """What the model has seen of a part of the images, in this role."""
    sha256 = [photo.pixels_sha256 for photo in part]
    signatures = [rows[photo.path].signature for photo in part]
    scenes = numbers(part).tolist()
    return SeenImages.of(sha256, signatures, photos.label_numbers(part), role, scenes)


def write_record(result: Fit, asked: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """fit.json, with every number."""
    folder = result.request.to
    content = {"form": FORM, "finished": True, "request": asked, "made": made}
    content |= {"model": checksums(folder)} | result.to_json() | report.details(result)
    write_text(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
