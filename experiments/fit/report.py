"""The page about a fit, one file without scripts: what was tried, what goes wrong, and what to do about it."""

import io
import shlex
from argparse import Namespace
from base64 import b64encode
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from dassl.utils import read_image
from PIL import ImageOps

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
    other = p.argmax(axis=1)
    doubt = p[rows, other] - of_label
    learned = found.images.of("train", "val")
    names = found.images.names
    return [
        {
            "path": found.images.photos[learned[found.held[place]]].path,
            "label": names[found.labels[place]],
            "rather": names[other[place]],
            "doubt": float(doubt[place]),
        }
        for place in np.argsort(-doubt, kind="stable")
        if doubt[place] > 0
    ]


def by_class(found: Found) -> list[dict[str, Any]]:
    """Of each class its number of training images, and the accuracy of those held out; the worst first."""
    learned = found.images.labels(found.images.of("train", "val"))
    answers = found.logits.argmax(axis=-1)
    rows = []
    for label, name in enumerate(found.images.names):
        own = found.labels == label
        accuracy = 100 * float((answers[:, own] == label).mean()) if own.any() else None
        rows.append({"name": name, "images": learned.count(label), "accuracy": accuracy})
    return sorted(rows, key=lambda row: 101.0 if row["accuracy"] is None else row["accuracy"])


def confused(found: Found) -> list[dict[str, Any]]:
    """Pairs of classes, by how many held-out images of the first one are taken for the second one."""
    names, learned = found.images.names, found.images.of("train", "val")
    pairs: dict[tuple[int, int], list[str]] = defaultdict(list)
    for place, answer in enumerate(found.logits[0].argmax(axis=-1) if len(found.logits) else ()):
        if answer != found.labels[place]:
            path = found.images.photos[learned[found.held[place]]].path
            pairs[int(found.labels[place]), int(answer)].append(path)
    ordered = sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0]))
    return [{"label": names[a], "answer": names[b], "images": paths} for (a, b), paths in ordered]


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
    example, doubling = shlex.quote(str(args.images)), None
    if found.estimate and found.zero_shot is not None:
        doubling = gain(found.estimate.accuracy, found.zero_shot, found.estimate.images / len(np.unique(found.labels)))
    return render(
        Path(__file__).with_name("report.html"),
        found=found,
        args=args,
        rows=sorted((row for row in found.rows if "accuracy" in row), key=lambda row: -row["accuracy"]),
        faults=[row for row in found.rows if "fault" in row],
        classes=by_class(found) if found.estimate else [],
        suspects=(named := suspects(found))[:MOST],
        suspected=len(named),
        confused=confused(found)[: MOST // 2],
        thumbnail=thumbnail,
        to=shlex.quote(str(args.to)),
        images=example,
        doubling=doubling,
    )
