"""The page about a fit, one file without scripts: what was tried, what goes wrong, and what to do
about it.
"""

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from common.errors import UsageError
from common.names import csv_cell
from common.pages import data_address, render
from inference.addresses import is_address
from inference.calibration import softmax
from inference.images import jpeg_of

from . import choose
from .read_images import Photo
from .result import Fit
from .trials import Trials

# On the first screen, which is one sheet of paper; of more, the WORST
MOST_CLASSES = 30
WORST = 20
MOST_WRONG = 6  # images with their reason
MOST = 12  # labels to check, and pairs of classes, on the page
MOST_COLUMNS = 100  # of probabilities in labels.csv
SIDE = 128  # pixels of a small picture
LEAST = 1e-300  # a probability whose logarithm is taken


def probabilities(fit: Fit) -> NDArray[np.float64]:
    """(held, classes): of the images that were held out, the mean over the repeats."""
    assert fit.calibration
    repeats = [softmax(fit.calibration.temperature.apply(one)) for one in fit.decision.logits]
    return np.mean(repeats, axis=0)


def label_issues(p: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(images,): whether the answer is not the label, and at least as probable as it is on average
    for the images that have it as their label (confident learning, Northcutt et al., 2021).

    Args:
        p: (images, classes).
    """
    of_label = p[np.arange(len(p)), labels]
    number = p.shape[1]
    usual = np.bincount(labels, of_label, number) / np.bincount(labels, minlength=number).clip(1)
    probability = p.max(axis=1)
    return (probability > of_label) & (probability >= usual[p.argmax(axis=1)])


def held_out(fit: Fit, trials: Trials) -> pd.DataFrame:
    """A row for each image that was held out, by its place among the training images."""
    p = probabilities(fit)
    labels = trials.sample.labels
    content = {
        "answer": [fit.photos.names[answer] for answer in p.argmax(axis=1)],
        "probability_of_label": p[np.arange(len(p)), labels],
        "probability_of_answer": p.max(axis=1),
        # The columns of cleanlab, whose score is low for a label in doubt
        "is_label_issue": label_issues(p, labels),
    }
    return pd.DataFrame(content, trials.held)


def mistakes(fit: Fit) -> pd.DataFrame:
    """Those of `held_out` whose answer is not their label, with `path`, `label` and `doubt` (minus
    the logarithm of the probability of the label); those with the least probable labels first.
    """
    if fit.decision.trials is None:
        return pd.DataFrame(columns=["label", "answer", "is_label_issue"], dtype=bool)
    found = held_out(fit, fit.decision.trials)
    found["path"] = [fit.photos.training[place].path for place in found.index]
    found["label"] = [fit.photos.training[place].label for place in found.index]
    found["doubt"] = -np.log(found["probability_of_label"].clip(LEAST))
    wrong = found["probability_of_answer"] > found["probability_of_label"]  # not of a tie
    return found[wrong].sort_values("doubt", ascending=False, kind="stable")


def details(fit: Fit) -> dict[str, Any]:
    """What fit.json has besides `Fit.to_json`: accuracies by class, all confused pairs and all
    labels to check.
    """
    trials = fit.decision.trials
    if trials is None:
        return {}
    wrong = mistakes(fit)
    doubtful = wrong.loc[wrong["is_label_issue"], ["path", "label", "answer", "doubt"]]
    facts = {"by_class": by_class(fit, trials), "confused": confused(fit, trials)}
    return facts | {"suspects": doubtful.to_dict("records")}


def labels_csv(fit: Fit) -> str:
    """A line for each training image, with what the others say of it: labels.csv.

    Columns of probabilities have the class in their names; of more than MOST_COLUMNS classes, only
    that of the label and the largest one are written.
    """
    photos = fit.photos
    content = {
        # From another folder, a relative path would not be found
        "path": [
            csv_cell(path if is_address(path) else os.path.abspath(path))
            for path in (photo.path for photo in photos.training)
        ],
        "label": [csv_cell(photo.label) for photo in photos.training],
        "group": photos.groups,
    }
    table = pd.DataFrame(content)
    trials = fit.decision.trials
    if trials is not None:
        table = table.join(held_out(fit, trials))
        table["answer"] = table["answer"].map(csv_cell, na_action="ignore")
        table["is_label_issue"] = table["is_label_issue"].eq(True)  # no image that was not held out
        table["label_score"] = table["probability_of_label"]
        table["given_label"] = table["label"]
        table["predicted_label"] = table["answer"]
        if len(photos.names) <= MOST_COLUMNS:
            columns = [f"probability: {name}" for name in photos.names]
            table = table.join(pd.DataFrame(probabilities(fit), trials.held, columns))
    return table.to_csv(index=False, float_format="%.6f")


def by_class(fit: Fit, trials: Trials) -> list[dict[str, Any]]:
    """Of each class its number of training images, and the accuracy of those held out (None without
    any); the worst first.
    """
    sample = trials.sample
    right = sample.weights * choose.correct(fit.decision.logits, sample.labels)
    names = fit.photos.names
    sums = [np.bincount(sample.labels, one, len(names)).tolist() for one in (right, sample.weights)]
    images = Counter(photo.label for photo in fit.photos.training)
    rows = [
        {"class": name, "images": images[name], "accuracy": 100 * (part / whole) if whole else None}
        for name, part, whole in zip(names, *sums, strict=True)
    ]
    return sorted(rows, key=lambda row: (row["accuracy"] is None, row["accuracy"]))


def confused(fit: Fit, trials: Trials) -> list[dict[str, Any]]:
    """Pairs of classes, and the number of held-out images of the first that are classified as the
    second; most first.
    """
    answers = fit.decision.logits[0].argmax(axis=-1)
    pairs = Counter(zip(trials.sample.labels.tolist(), answers.tolist(), strict=True))
    names = fit.photos.names
    return [
        {"label": names[label], "answer": names[answer], "images": images}
        for (label, answer), images in pairs.most_common()
        if label != answer
    ]


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
    similar[photos.groups == photos.groups[place]] = -np.inf
    return photos.training[similar.argmax()]


def thumbnail(path: str) -> str:
    """A small picture of an image, as an address for the page; empty if the image is gone."""
    try:
        content = jpeg_of(path, SIDE)
    except (UsageError, OSError):
        return ""
    return data_address(content, "jpeg")


def page(fit: Fit, found: Mapping[str, Any], x: Tensor) -> str:
    """The page, as HTML.

    Args:
        found: the `details`.
        x: (training images, width), their features.
    """
    classes = found.get("by_class", [])
    shown = [row["class"] for row in classes if row["accuracy"] is not None]
    if len(classes) > MOST_CLASSES:
        shown = shown[:WORST]
    wrong = mistakes(fit)
    doubtful = wrong[wrong["is_label_issue"]]
    # One of each pair of classes before a second one
    earlier = wrong.groupby(["label", "answer"]).cumcount()
    typical = wrong.iloc[np.argsort(earlier, kind="stable")[:MOST_WRONG]]
    values = {
        "to": shlex.quote(str(fit.request.to)),
        "rows": leaderboard(fit.decision.rows).to_dict("records"),
        "classes": classes,
        "some": len(classes) > MOST_CLASSES,
        "shown": shown,
        "confusion": confusion(fit, shown).tolist(),
        "mistakes": len(wrong),
        "wrong": [(one, nearest(fit, one.Index, x)) for one in typical.itertuples()],
        "issues": len(doubtful),
        "doubtful": doubtful[:MOST].to_dict("records"),
        "confused": found.get("confused", [])[:MOST],
    }
    return render(Path(__file__).with_name("report.html"), **values, fit=fit, thumbnail=thumbnail)


def leaderboard(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The candidates, the most accurate first; those that were left out have a fault."""
    columns = ["name", "accuracy", "low", "high", "seconds", "fault"]
    if any("backbone" in row for row in rows):
        columns.insert(1, "backbone")
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("accuracy", ascending=False, ignore_index=True)
