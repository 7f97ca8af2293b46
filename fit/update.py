"""More images for a finished fit whose heads are computed and not trained: its choice stays."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from clip import CLIP
from common.errors import UsageError
from common.files import write_text
from common.results import CALIBRATION, SEEN
from common.text import read_json
from inference.calibrated import calibration_in

from . import banked
from .candidates import CANDIDATES, COMPUTED, Candidate
from .features import Features
from .images import Photo
from .photos import Photos
from .record import FILE, checksums
from .request import FitRequest
from .sources import heads_of
from .story import photos_of, provenance, seen_images
from .unlabelled import features_of


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
        The images that the heads have learned; None if one of the heads is trained: then nothing
        is written.

    Raises:
        UsageError: as for `fit`; or an image of the fit is gone.
    """
    folder = request.to
    found = [*before, *added]
    names = {photo.label for photo in found}.union(request.classes)
    heads = heads_of(request, sorted(names), clip)
    encoder = Features(heads.zero_shot, heads.tower)
    rows, damaged = banked.features_of(found, encoder)
    check_found(before, damaged)
    record = read_json(folder / FILE)
    chosen = chosen_of(record)
    if not chosen:
        return None
    photos = photos_of(request, found, rows, damaged)
    if photos.names != heads.names:
        heads = heads_of(request, photos.names, heads.clip)
    x = features_of(photos.training, rows).to(heads.zero_shot.device)
    y = torch.tensor(photos.label_numbers(photos.training), device=x.device)
    made = provenance(request, heads)
    classifier = heads.classifier(chosen, x, y, {"images": len(y), **made})
    if photos.names == record["names"]:
        classifier.calibration = calibration_in(folder)
    for name in (CALIBRATION, SEEN):
        (folder / name).unlink(missing_ok=True)
    classifier.save(folder)
    seen = seen_images(photos, photos.training, rows, "learned")
    seen += seen_images(photos, photos.tested, rows, "tested")
    if photos.looks:
        seen.write(folder)
    # Without the request, the same call of the command fits again
    record |= {"request": {}, "made": made, "model": checksums(folder), **facts_of(photos)}
    write_text(folder / FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return photos


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
        what = f"{len(lost)} images of the earlier fit are gone, such as {lost[0]}"
        raise UsageError(what, "restore them, or call fit with all images")


def chosen_of(record: dict[str, Any]) -> list[tuple[Candidate, float]]:
    """The chosen candidates of a fit with their weights; empty if one of them is trained, is none
    of these days, or has an offset, which more images would change.
    """
    known = {one.name: one for one in CANDIDATES if one.method in COMPUTED}
    chosen = []
    for row in record["chosen"]:
        asked = Candidate(row["method"], row["settings"], row["training"], row.get("pool", ""))
        if asked.name not in known or row.get("offset"):
            return []
        chosen.append((known[asked.name], float(row["weight"])))
    return chosen
