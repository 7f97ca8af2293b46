"""More images for a finished fit whose heads are computed and not trained: its choice stays."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clip import CLIP
from common.errors import UsageError
from common.files import write_json
from common.text import read_json
from inference.calibrated import calibration_in
from inference.classifier import PromptedClassifier

from . import banked
from .candidates import CANDIDATES, COMPUTED, Candidate
from .features import Features, Row
from .images import learned_classes
from .photos import Photos
from .record import FILE, checksums
from .request import FitRequest
from .rows import Photo
from .sources import heads_of
from .story import examples_of, photos_of, provenance, save, seen_images


def update(
    request: FitRequest,
    before: Sequence[Photo],
    added: Sequence[Photo],
    clip: CLIP | None = None,
) -> Photos | None:
    """Compute the chosen heads again from these images too, in the folder of the fit.

    The choice and the estimate stay those of the earlier images, and so does the calibration, if no
    class is new.

    Args:
        request: `to` is the folder of the fit.
        before: the images of the fit, which are on the disk, or whose features are.
        added: more images, with the SHA-256 of their files.
        clip: the backbone, if it is loaded already.

    Returns:
        The images that the heads have learned; None if one of the heads is trained, or if there are
        models of folds, which would have to learn, too: then nothing is written.

    Raises:
        UsageError: as for `fit`; or an image of the fit is gone.
    """
    found = [*before, *added]
    heads = heads_of(request, sorted(learned_classes(found).union(request.classes)), clip)
    read = banked.features_of(found, Features(heads.zero_shot, heads.tower))
    check_found(before, read[1])
    record = read_json(request.to / FILE)
    chosen = chosen_of(record)
    if not chosen:
        return None
    photos = photos_of(request, found, *read)
    if photos.names != heads.names:
        heads = heads_of(request, photos.names, heads.clip)
    record["made"] = provenance(request, heads)
    facts = {"images": len(photos.training), **record["made"]}
    classifier = heads.classifier(chosen, examples_of(photos, read[0], heads).seen, facts)
    write_again(request.to, classifier, photos, read[0], record)
    return photos


def write_again(
    folder: Path,
    classifier: PromptedClassifier,
    photos: Photos,
    rows: Mapping[str, Row],
    record: dict[str, Any],
) -> None:
    """Write the model, and the record with a request without images, so that the same call of the
    command fits again.
    """
    if photos.names == record["names"]:
        classifier.calibration = calibration_in(folder)
    save(classifier, folder, seen_images(photos, rows, "learned") if photos.looks else None)
    request = {**record["request"], "images": ""}
    record |= {"request": request, "model": checksums(folder), **facts_of(photos)}
    write_json(folder / FILE, record, ensure_ascii=False)


def facts_of(photos: Photos) -> dict[str, Any]:
    """What fit.json says of the images."""
    return {
        "images": [asdict(photo) for photo in photos.images],
        "names": photos.names,
        "damaged": dict(photos.damaged),
        "notes": photos.notes,
    }


def check_found(before: Sequence[Photo], damaged: Mapping[str, str]) -> None:
    """Raise UsageError if an image of the earlier fit is gone."""
    lost = [photo.path for photo in before if photo.path in damaged]
    if lost:
        fault = f"{len(lost)} images of the earlier fit are gone, such as {lost[0]}"
        raise UsageError(fault, "restore them, or call fit with all images")


def chosen_of(record: dict[str, Any]) -> list[tuple[Candidate, float]]:
    """The chosen candidates of a fit with their weights; empty if one of them is trained, is
    unknown in this version, or has an offset, which more images would change.
    """
    known = {one.name: one for one in CANDIDATES if one.method in COMPUTED}
    chosen = []
    for row in record["chosen"]:
        asked = Candidate(row["method"], row["settings"], row["training"])
        if asked.name not in known or row.get("offset"):
            return []
        chosen.append((known[asked.name], float(row["weight"])))
    return chosen
