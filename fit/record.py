"""fit.json: what a fit was asked for, and what it has found."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.files import checksum
from common.lock import LOCK
from common.names import printable
from common.records import read
from common.results import CALIBRATION, SEEN
from common.start import required_packages
from common.text import MAX_JSON, read_bytes, read_json

from .options import COVERAGES, OLD_COVERAGES, FitOptions, FitRequest
from .read_images import Photo

FILE = "fit.json"
PAGE = "report.html"
TABLE = "labels.csv"
WRITTEN = FILE, PAGE, TABLE, CALIBRATION, SEEN, "config.json", "prompts.safetensors"
FORM = 2  # of the file; another one is fitted again


def earlier_record(folder: Path) -> dict[str, Any]:
    """The content of fit.json of an earlier call; empty if there is none.

    Raises:
        UsageError: the folder holds something else.
    """
    record: Any = read_json(folder / FILE) if (folder / FILE).is_file() else None
    if isinstance(record, dict) and "form" in record:
        return record
    if folder.exists() and not (folder.is_dir() and {LOCK}.issuperset(os.listdir(folder))):
        fault = f"{folder} is not an empty folder"
        raise UsageError(fault, "choose another one, or delete it", folder)
    return {}


def check_same_images(record: dict[str, Any], photos: Sequence[Photo], request: FitRequest) -> None:
    """Raise UsageError if the earlier fit in a folder, if any, is of other images: of none of
    these.
    """
    try:
        known = {row["sha256"] for row in record["images"]}
        names = printable(", ".join(record["names"]))
    except (KeyError, TypeError):  # it was killed before, or is damaged
        return
    if known and known.isdisjoint(photo.sha256 for photo in photos):
        fault = f"{request.to} has a model of other images than {request.images} ({names:.100})"
        raise UsageError(fault, "name another folder by --to, or add --replace", request.to)


def options_of(record: dict[str, Any], folder: Any) -> dict[str, Any]:
    """The options of `Classifier` by which a fit in a folder was made; UsageError for one of
    another form, ValueError for a damaged record.
    """
    if record["form"] != FORM:
        fault = f"{folder} is a fit of another version"
        raise UsageError(fault, "fit again, or open it by inference.load.load")
    known = asdict(read(FitOptions, with_new_words(record["request"])))
    known["random_state"] = known.pop("seed")
    return known


def with_new_words(request: Any) -> Any:
    """The request of a fit, in the words that options have now."""
    if not isinstance(request, dict) or "coverage_by" not in request:
        return request
    known = dict(request)
    coverage = str(known.pop("coverage_by"))
    return known | {"coverage": OLD_COVERAGES.get(coverage, coverage)}


def images_of(record: dict[str, Any]) -> list[Photo]:
    """The images that a fit has learned from and was tested on; ValueError for a damaged record."""
    return [read(Photo, with_new_keys(row)) for row in record["images"]]


def with_new_keys(row: Any) -> Any:
    """An image of fit.json, by the keys that it has now."""
    if not isinstance(row, dict) or "scene" not in row:
        return row
    known = dict(row)
    return known | {"group_number": known.pop("scene")}


def contents_of(folder: Path) -> dict[str, bytes]:
    """The files that a fit has written to its folder, by their names. A link would lead to a file
    that is not the model's.
    """
    files = [folder / name for name in WRITTEN]
    return {
        file.name: file.read_bytes() for file in files if file.is_file() and not file.is_symlink()
    }


def write_contents(folder: Path, contents: dict[str, bytes]) -> None:
    """Write the files of a fit, by their names."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def record_of(
    request: FitRequest, photos: Sequence[Photo], earlier: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The content of fit.json before the fit: that of an earlier call with the same facts, or a new
    one.
    """
    asked = facts(request, photos)
    if earlier and with_new_words(earlier.get("request")) == asked:
        return earlier
    images = [asdict(photo) for photo in photos]
    names = sorted({photo.label for photo in photos})
    facts_so_far = {"form": FORM, "finished": False, "request": asked}
    return facts_so_far | {"images": images, "names": names}


def facts(request: FitRequest, photos: Sequence[Photo]) -> dict[str, Any]:
    """The facts that a fit depends on, for fit.json: the same facts give the same result."""
    with required_packages():
        from clip import weights_sha256  # imports torch, which takes seconds

    kept = {one.name: getattr(request, one.name) for one in fields(FitOptions)}
    # Options that earlier versions lack
    later = {"coverage": COVERAGES[0], "max_ms": None}
    known = {name: value for name, value in kept.items() if value != later.get(name, ...)}
    weights, *others = map(weights_sha256, request.backbones)
    if others:
        known["others"] = others
    if any(photo.bank for photo in photos):
        known["bank"] = True
    if any(photo.asked for photo in photos):
        known["asked"] = digest([photo.asked for photo in photos])
    sentences = ""
    if request.sentences:
        sentences = hashlib.sha256(read_bytes(request.sentences, MAX_JSON)).hexdigest()
    return known | {
        "methods": list(request.methods),
        "images": digest(
            [[photo.sha256, photo.label, photo.part, photo.group] for photo in photos]
        ),
        "weights": weights,
        "sentences": sentences,
        "form": FORM,
    }


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of the files of a model, by their names."""
    from inference.artefact import EXPORT_CONFIG_FILE, PROMPTS  # imports torch, which takes seconds

    files = [folder / name for name in (EXPORT_CONFIG_FILE, PROMPTS)]
    return {file.name: checksum(file) for file in files if file.is_file()}
