"""The page about a fit, one file without scripts: what was tried, what goes wrong, and what to do
about it.
"""

import io
import shlex
from argparse import Namespace
from base64 import b64encode
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from dassl.utils import read_image
from numpy.typing import NDArray
from PIL import ImageOps

from clip import is_known
from common.errors import UsageError
from common.names import csv_cell
from common.pages import render
from inference.calibrated import Calibration
from inference.calibration import softmax

from .choice import gain
from .found import Found
from .groups import numbers

MOST = 12  # suspects, and pairs of classes, on the page
MOST_COLUMNS = 100  # of probabilities in labels.csv
SIDE = 96  # pixels of a small picture


def probabilities(found: Found, calibration: Calibration) -> NDArray[np.float64]:
    """(held, classes): of the images that were held out, the mean over the repeats."""
    return np.mean([softmax(calibration.temperature.apply(one)) for one in found.logits], axis=0)


def suspects(found: Found) -> list[dict[str, Any]]:
    """The held-out images by how much more probable another class is than their label, those most
    in doubt first.
    """
    if found.calibration is None:
        return []
    p = probabilities(found, found.calibration)
    rows = np.arange(len(p))
    of_label = p[rows, found.labels]
    p[rows, found.labels] = -1
    doubt = p.max(axis=1) - of_label
    return [
        asdict(found.images[found.held[place]])
        | {"rather": found.names[p[place].argmax()], "doubt": doubt[place]}
        for place in np.argsort(-doubt, kind="stable")
        if doubt[place] > 0
    ]


def details(found: Found) -> dict[str, Any]:
    """What fit.json has besides `Found`: accuracies by class, all confused pairs and all
    suspects.
    """
    if found.calibration is None:
        return {}
    classes = [
        {"class": name, "images": images, "accuracy": None if np.isnan(accuracy) else accuracy}
        for name, images, accuracy in by_class(found)
    ]
    pairs = [
        {"label": label, "answer": answer, "images": len(paths)}
        for (label, answer), paths in confused(found)
    ]
    doubtful = [
        {key: one[key] for key in ("path", "label", "rather", "doubt")} for one in suspects(found)
    ]
    return {"by_class": classes, "confused": pairs, "suspects": doubtful}


def labels_csv(found: Found) -> str:
    """A line for each training image, with what the others say of it: labels.csv.

    Columns of probabilities have the class in their names; of more than MOST_COLUMNS classes, only
    that of the label and the largest one are written.
    """
    scenes = numbers(found.training)
    content: dict[str, Any] = {
        "path": [csv_cell(photo.path) for photo in found.training],
        "label": [csv_cell(photo.label) for photo in found.training],
        "group": scenes,
    }
    if found.calibration is not None:
        p = np.full((len(scenes), len(found.names)), np.nan)
        p[found.held] = probabilities(found, found.calibration)
        labels = np.array(found.label_numbers(found.training))
        of_label = p[np.arange(len(p)), labels]
        answers = np.nan_to_num(p).argmax(axis=1)
        is_held = ~np.isnan(of_label)
        content["answer"] = [
            csv_cell(found.names[answer]) if held else ""
            for answer, held in zip(answers, is_held, strict=True)
        ]
        content["probability_of_label"] = of_label
        content["probability_of_answer"] = p.max(axis=1)
        if len(found.names) <= MOST_COLUMNS:
            content |= {
                f"probability: {name}": p[:, place] for place, name in enumerate(found.names)
            }
    return pd.DataFrame(content).to_csv(index=False, float_format="%.6f")


def by_class(found: Found) -> list[tuple[str, int, float]]:
    """Of each class its number of training images, and the accuracy of those held out (NaN: none);
    the worst first.
    """
    right = (found.logits.argmax(axis=-1) == found.labels).mean(axis=0)
    number = len(found.names)
    weights = found.sample.weights
    with np.errstate(invalid="ignore"):
        accuracies = np.bincount(found.labels, weights * right, number) / np.bincount(
            found.labels, weights, number
        )
    counts = Counter(photo.label for photo in found.training)
    rows = [
        (name, counts[name], 100 * float(value))
        for name, value in zip(found.names, accuracies, strict=True)
    ]
    return sorted(rows, key=lambda row: (np.isnan(row[2]), row[2]))


def confused(found: Found) -> list[tuple[tuple[str, str], list[str]]]:
    """Pairs of classes, and the paths of the held-out images of the first that are taken for the
    second; most first.
    """
    pairs = defaultdict[tuple[str, str], list[str]](list)
    for place, label, answer in zip(
        found.held, found.labels, found.logits[0].argmax(axis=-1), strict=True
    ):
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
        doubling = gain(found.estimate.accuracy, found.zero_shot, found.of_class)
    return render(
        Path(__file__).with_name("report.html"),
        found=found,
        args=args,
        other=found.other_estimate(args.prior),
        groups=found.largest_groups(MOST // 2),
        rows=sorted(
            (row for row in found.candidates if "accuracy" in row), key=lambda row: -row["accuracy"]
        ),
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
