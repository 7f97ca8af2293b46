"""The page about a fit, one file without scripts: what was tried, what goes wrong, and what to do
about it.
"""

import os
import shlex
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from common.errors import UsageError
from common.names import csv_cell
from common.pages import render
from inference.addresses import is_address
from inference.calibrated import Calibration
from inference.calibration import softmax
from inference.images import jpeg_of

from . import choice
from .result import Fit
from .rows import Photo

# On the first screen, which is one sheet of paper; of more, the WORST
MOST_CLASSES = 30
WORST = 20
MOST_WRONG = 6  # images with their reason
MOST = 12  # labels to check, and pairs of classes, on the page
MOST_COLUMNS = 100  # of probabilities in labels.csv
SIDE = 128  # pixels of a small picture
LEAST = 1e-300  # a probability whose logarithm is taken


def probabilities(fit: Fit, calibration: Calibration) -> NDArray[np.float64]:
    """(held, classes): of the images that were held out, the mean over the repeats."""
    repeats = [softmax(calibration.temperature.apply(one)) for one in fit.decision.logits]
    return np.mean(repeats, axis=0)


def label_issues(p: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(images,): whether the answer is not the label, and a class other than the label is at least
    as probable as it is on average for the images with that label (confident learning, Northcutt et
    al., 2021).

    Args:
        p: (images, classes).
    """
    places = np.arange(len(p)), labels
    of_label = p[places]
    with np.errstate(invalid="ignore"):
        usual = np.bincount(labels, of_label, p.shape[1]) / np.bincount(labels, None, p.shape[1])
    is_usual = p >= usual  # not of a class without images
    is_usual[places] = False
    return is_usual.any(axis=1) & (p.max(axis=1) > of_label)


def mistakes(fit: Fit) -> list[dict[str, Any]]:
    """The held-out images whose answer is not their label, those with the least probable labels
    first: the image, its place, `answer` with its `probability`, `doubt` (minus the logarithm of
    the probability of the label), and whether the label `is_issue`.
    """
    trials = fit.decision.trials
    if fit.calibration is None or trials is None:
        return []
    p = probabilities(fit, fit.calibration)
    labels = trials.sample.labels
    of_label = p[np.arange(len(p)), labels]
    doubt = -np.log(of_label.clip(LEAST))
    answers = p.argmax(axis=1)
    probability = p.max(axis=1)
    is_issue = label_issues(p, labels)
    found = []
    for image in np.argsort(-doubt, kind="stable"):
        if probability[image] > of_label[image]:  # not of a tie
            place = trials.held[image]
            one = asdict(fit.photos.images[place]) | {"place": place, "doubt": doubt[image]}
            one["answer"] = fit.photos.names[answers[image]]
            one["probability"] = probability[image]
            one["is_issue"] = is_issue[image]
            found.append(one)
    return found


def typical(wrong: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """MOST_WRONG of the mistakes, one of each pair of classes before a second one."""
    pairs = pd.DataFrame(wrong, columns=["label", "answer"])
    earlier = pairs.groupby(["label", "answer"]).cumcount()
    return [wrong[place] for place in np.argsort(earlier, kind="stable")[:MOST_WRONG]]


def details(fit: Fit) -> dict[str, Any]:
    """What fit.json has besides `Fit.to_json`: accuracies by class, all confused pairs and all
    labels to check.
    """
    if fit.calibration is None:
        return {}
    classes = [
        {"class": name, "images": images, "accuracy": None if np.isnan(accuracy) else accuracy}
        for name, images, accuracy in by_class(fit)
    ]
    pairs = [
        {"label": label, "answer": answer, "images": images}
        for (label, answer), images in confused(fit)
    ]
    doubtful = [
        {key: one[key] for key in ("path", "label", "answer", "doubt")}
        for one in mistakes(fit)
        if one["is_issue"]
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
        is_issue = np.zeros(len(p), dtype=bool)
        is_issue[trials.held] = label_issues(p[trials.held], trials.sample.labels)
        content["is_label_issue"] = is_issue
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


def confused(fit: Fit) -> list[tuple[tuple[str, str], int]]:
    """Pairs of classes, and the number of held-out images of the first that are classified as the
    second; most first.
    """
    trials = fit.decision.trials
    if trials is None:
        return []
    answers = fit.decision.logits[0].argmax(axis=-1)
    names = fit.photos.names
    pairs = zip(trials.sample.labels, answers, strict=True)
    return Counter((names[one], names[other]) for one, other in pairs if one != other).most_common()


def confusion(fit: Fit, shown: Sequence[str]) -> NDArray[np.float64]:
    """(shown, shown + 1): of the held-out images of each of these classes, the share with each of
    them as the answer, the mean over the repeats; last, the share with another class.
    """
    decision = fit.decision
    if decision.trials is None:
        return np.zeros((0, 1))
    sample = decision.trials.sample
    names = fit.photos.names
    place = np.full(len(names), len(shown))
    place[[names.index(name) for name in shown]] = np.arange(len(shown))
    sums = np.zeros((len(shown) + 1, len(shown) + 1))
    for answers in decision.logits.argmax(axis=-1):
        np.add.at(sums, (place[sample.labels], place[answers]), sample.weights)
    return sums[:-1] / sums[:-1].sum(axis=1, keepdims=True)


def nearest(fit: Fit, place: int, x: Tensor) -> Photo:
    """The training image of another group that is most similar to one of them.

    Args:
        x: (training images, width), their features.
    """
    photos = fit.photos
    similar = cosine_similarity(x, x[place], dim=1).cpu().numpy()
    similar[photos.scenes == photos.scenes[place]] = -np.inf
    return photos.training[similar.argmax()]


def thumbnail(path: str) -> str:
    """A small picture of an image, as an address for the page; empty if the image is gone."""
    try:
        content = jpeg_of(path, SIDE)
    except (UsageError, OSError):
        return ""
    return f"data:image/jpeg;base64,{b64encode(content).decode()}"


def page(fit: Fit, x: Tensor) -> str:
    """The page, as HTML.

    Args:
        x: (training images, width), their features.
    """
    rows = fit.decision.rows
    classes = by_class(fit)
    shown = [name for name, _, accuracy in classes if not np.isnan(accuracy)]
    some = len(classes) > MOST_CLASSES
    if some:
        shown = shown[:WORST]
    wrong = mistakes(fit)
    doubtful = [one for one in wrong if one["is_issue"]]
    measured = [row for row in rows if "accuracy" in row]
    values = {
        "to": shlex.quote(str(fit.request.to)),
        "groups": fit.photos.largest_groups(MOST // 2),
        "rows": sorted(measured, key=lambda row: -row["accuracy"]),
        "faults": [row for row in rows if "fault" in row],
        "classes": classes,
        "shown": shown,
        "some": some,
        "confusion": confusion(fit, shown).tolist(),
        "mistakes": len(wrong),
        "wrong": [(one, nearest(fit, one["place"], x)) for one in typical(wrong)],
        "issues": len(doubtful),
        "doubtful": doubtful[:MOST],
        "confused": confused(fit)[:MOST],
        "more": fit.gain_of_more,
    }
    template = Path(__file__).with_name("report.html")
    return render(template, **values, fit=fit, thumbnail=thumbnail)


def leaderboard(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The candidates, the most accurate first; those that were left out have a fault."""
    columns = ["name", "accuracy", "low", "high", "seconds", "fault"]
    if any("backbone" in row for row in rows):
        columns.insert(1, "backbone")
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("accuracy", ascending=False, ignore_index=True)
