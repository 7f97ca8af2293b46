"""The page about a fit, one file without scripts: what was tried, what goes wrong, and what to do
about it.
"""

import os
import shlex
from base64 import b64encode
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import UsageError
from common.names import csv_cell
from common.pages import render
from inference.addresses import is_address
from inference.calibrated import Calibration
from inference.calibration import softmax
from inference.images import jpeg_of

from . import choice
from .result import Fit

MOST = 12  # suspects, and pairs of classes, on the page
MOST_COLUMNS = 100  # of probabilities in labels.csv
SIDE = 96  # pixels of a small picture
LEAST = 1e-300  # a probability whose logarithm is taken


def probabilities(fit: Fit, calibration: Calibration) -> NDArray[np.float64]:
    """(held, classes): of the images that were held out, the mean over the repeats."""
    repeats = [softmax(calibration.temperature.apply(one)) for one in fit.decision.logits]
    return np.mean(repeats, axis=0)


def suspects(fit: Fit) -> list[dict[str, Any]]:
    """The held-out images for which another class is more probable than their label, those with the
    least probable labels first; `doubt` is minus the logarithm of that probability.
    """
    trials = fit.decision.trials
    if fit.calibration is None or trials is None:
        return []
    p = probabilities(fit, fit.calibration)
    labels = trials.sample.labels
    of_label = p[np.arange(len(p)), labels]
    doubt = -np.log(of_label.clip(LEAST))
    answers = p.argmax(axis=1)
    is_suspect = p.max(axis=1) > of_label  # not of a tie
    photos = fit.photos
    return [
        asdict(photos.images[trials.held[place]])
        | {"rather": photos.names[answers[place]], "doubt": doubt[place]}
        for place in np.argsort(-doubt, kind="stable")
        if is_suspect[place]
    ]


def details(fit: Fit) -> dict[str, Any]:
    """What fit.json has besides `Fit.to_json`: accuracies by class, all confused pairs and all
    suspects.
    """
    if fit.calibration is None:
        return {}
    classes = [
        {"class": name, "images": images, "accuracy": None if np.isnan(accuracy) else accuracy}
        for name, images, accuracy in by_class(fit)
    ]
    pairs = [
        {"label": label, "answer": answer, "images": len(paths)}
        for (label, answer), paths in confused(fit)
    ]
    doubtful = [
        {key: suspect[key] for key in ("path", "label", "rather", "doubt")}
        for suspect in suspects(fit)
    ]
    return {"by_class": classes, "confused": pairs, "suspects": doubtful}


def labels_csv(fit: Fit) -> str:
    """A line for each training image, with what the others say of it: labels.csv.

    Columns of probabilities have the class in their names; of more than MOST_COLUMNS classes, only
    that of the label and the largest one are written.
    """
    photos = fit.photos
    content: dict[str, Any] = {
        "path": [csv_cell(findable(photo.path)) for photo in photos.training],
        "label": [csv_cell(photo.label) for photo in photos.training],
        "group": photos.scenes,
    }
    trials = fit.decision.trials
    if fit.calibration is not None and trials is not None:
        p = np.full((len(photos.training), len(photos.names)), np.nan)
        p[trials.held] = probabilities(fit, fit.calibration)
        of_label = p[np.arange(len(p)), photos.label_numbers(photos.training)]
        answers = [photos.names[answer] for answer in np.nan_to_num(p).argmax(axis=1)]
        content["answer"] = [
            "" if np.isnan(value) else csv_cell(answer)
            for answer, value in zip(answers, of_label, strict=True)
        ]
        content["probability_of_label"] = of_label
        content["probability_of_answer"] = p.max(axis=1)
        # The columns of cleanlab, whose score is low for a label in doubt
        content["is_label_issue"] = content["probability_of_answer"] > of_label
        content["label_score"] = of_label
        content["given_label"] = content["label"]
        content["predicted_label"] = content["answer"]
        if len(photos.names) <= MOST_COLUMNS:
            for place, name in enumerate(photos.names):
                content[f"probability: {name}"] = p[:, place]
    return pd.DataFrame(content).to_csv(index=False, float_format="%.6f")


def findable(path: str) -> str:
    """The path of an image in a file that is read from another folder."""
    return path if is_address(path) else os.path.abspath(path)


def by_class(fit: Fit) -> list[tuple[str, int, float]]:
    """Of each class its number of training images, and the accuracy of those held out (NaN: none);
    the worst first.
    """
    trials = fit.decision.trials
    if trials is None:
        return []
    sample = trials.sample
    correct = choice.correct(fit.decision.logits, sample.labels)
    number = len(fit.photos.names)
    of_class = np.bincount(sample.labels, sample.weights, number)
    with np.errstate(invalid="ignore"):
        accuracies = np.bincount(sample.labels, sample.weights * correct, number) / of_class
    counts = Counter(photo.label for photo in fit.photos.training)
    rows = [
        (name, counts[name], 100 * float(accuracy))
        for name, accuracy in zip(fit.photos.names, accuracies, strict=True)
    ]
    return sorted(rows, key=lambda row: (np.isnan(row[2]), row[2]))


def confused(fit: Fit) -> list[tuple[tuple[str, str], list[str]]]:
    """Pairs of classes, and the paths of the held-out images of the first that are classified as
    the second; most first.
    """
    trials = fit.decision.trials
    if trials is None:
        return []
    pairs = defaultdict[tuple[str, str], list[str]](list)
    answers = fit.decision.logits[0].argmax(axis=-1)
    names = fit.photos.names
    for place, label, answer in zip(trials.held, trials.sample.labels, answers, strict=True):
        if answer != label:
            pairs[names[label], names[answer]].append(fit.photos.images[place].path)
    return sorted(pairs.items(), key=lambda item: -len(item[1]))


def thumbnail(path: str) -> str:
    """A small picture of an image, as an address for the page; empty if the image is gone."""
    try:
        content = jpeg_of(path, SIDE)
    except (UsageError, OSError):
        return ""
    return f"data:image/jpeg;base64,{b64encode(content).decode()}"


def page(fit: Fit) -> str:
    """The page, as HTML."""
    decision = fit.decision
    request = fit.request
    doubling = None
    if fit.estimate and decision.zero_shot is not None:
        doubling = choice.gain(fit.estimate.accuracy, decision.zero_shot, decision.of_class)
    measured = [row for row in decision.rows if "accuracy" in row]
    faults = [row for row in decision.rows if "fault" in row]
    measured.sort(key=lambda row: -row["accuracy"])
    doubtful = suspects(fit)
    to = shlex.quote(str(request.to))
    words = {"to": to, "backbone": fit.backbone_option, "doubling": doubling}
    words["suspected"] = len(doubtful)
    tables = {
        "groups": fit.photos.largest_groups(MOST // 2),
        "rows": measured,
        "faults": faults,
        "classes": by_class(fit),
        "suspects": doubtful[:MOST],
        "confused": confused(fit)[: MOST // 2],
    }
    template = Path(__file__).with_name("report.html")
    return render(template, **words, **tables, fit=fit, thumbnail=thumbnail)


def leaderboard(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The candidates, the most accurate first; those that were left out have a fault."""
    columns = ["name", "accuracy", "low", "high", "seconds", "fault"]
    if any("backbone" in row for row in rows):
        columns.insert(1, "backbone")
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("accuracy", ascending=False, ignore_index=True)
