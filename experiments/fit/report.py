"""The page about a fit, one file without scripts: what was tried, what goes wrong, and what to do about it."""

import io
import shlex
from argparse import Namespace
from base64 import b64encode
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from dassl.utils import read_image
from PIL import ImageOps

from clip import is_known
from common.errors import UsageError
from common.pages import render
from inference.calibration import softmax

from .choice import gain
from .found import Found

MOST = 12  # suspects, and pairs of classes, on the page
SIDE = 96  # pixels of a small picture


def suspects(found: Found) -> list[dict[str, Any]]:
    """The held-out images by how much more probable another class is than their label, those most in doubt first."""
    if found.calibration is None:
        return []
    p = np.mean([softmax(found.calibration.temperature.apply(one)) for one in found.logits], axis=0)
    rows = np.arange(len(p))
    of_label = p[rows, found.labels]
    p[rows, found.labels] = -1
    doubt = p.max(axis=1) - of_label
    return [
        asdict(found.images[found.held[place]]) | {"rather": found.names[p[place].argmax()], "doubt": doubt[place]}
        for place in np.argsort(-doubt, kind="stable")
        if doubt[place] > 0
    ]


def by_class(found: Found) -> list[tuple[str, int, float]]:
    """Of each class its number of training images, and the accuracy of those held out (NaN: none); the worst first."""
    right, number = (found.logits.argmax(axis=-1) == found.labels).mean(axis=0), len(found.names)
    with np.errstate(invalid="ignore"):
        accuracies = np.bincount(found.labels, right, number) / np.bincount(found.labels, minlength=number)
    counts = Counter(photo.label for photo in found.training)
    rows = [(name, counts[name], 100 * float(value)) for name, value in zip(found.names, accuracies, strict=True)]
    return sorted(rows, key=lambda row: (np.isnan(row[2]), row[2]))


def confused(found: Found) -> list[tuple[tuple[str, str], list[str]]]:
    """Pairs of classes, and the paths of the held-out images of the first that are taken for the second; most first."""
    pairs = defaultdict[tuple[str, str], list[str]](list)
    for place, label, answer in zip(found.held, found.labels, found.logits[0].argmax(axis=-1), strict=True):
        if answer != label:
            pairs[found.names[label], found.names[answer]].append(found.images[place].path)
    return sorted(pairs.items(), key=lambda item: -len(item[1]))


def thumbnail(path: str) -> str:
    """A small picture of an image, as an address for the page; empty if the image is gone."""
    try:
        picture = ImageOps.contain(read_image(path), (SIDE, SIDE))
    except (UsageError, OSError):
        return ""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(content.getvalue()).decode()}"


def page(args: Namespace, found: Found) -> str:
    """The page, as HTML."""
    doubling = None
    if found.estimate and found.zero_shot is not None:
        doubling = gain(found.estimate.accuracy, found.zero_shot, found.estimate.images / len(np.unique(found.labels)))
    return render(
        Path(__file__).with_name("report.html"),
        found=found,
        args=args,
        rows=sorted((row for row in found.candidates if "accuracy" in row), key=lambda row: -row["accuracy"]),
        faults=[row for row in found.candidates if "fault" in row],
        classes=by_class(found) if found.estimate else [],
        suspects=(named := suspects(found))[:MOST],
        suspected=len(named),
        confused=confused(found)[: MOST // 2] if found.estimate else [],
        thumbnail=thumbnail,
        to=shlex.quote(str(args.to)),
        backbone="" if is_known(args.backbone) else f" --backbone {shlex.quote(args.backbone)}",
        doubling=doubling,
    )
