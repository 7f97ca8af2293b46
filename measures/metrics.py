"""Measures of a test beyond accuracy: calibration, and detection of out-of-distribution images."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .results import harmonic_mean

BINS = 15  # of the expected calibration error
Floats = NDArray[np.floating[Any]]


def of_predictions(
    labels: Any, classes: Any, probabilities: Any, log_probability: Any, brier: Any
) -> dict[str, float]:
    """The measures of a test, from the predictions of its images.

    Args:
        labels: (images,).
        classes: (images, k), the k most likely classes, the most likely first.
        probabilities: (images, k), theirs.
        log_probability: (images,), the natural logarithm of the label's probability.
        brier: (images,), the sum over classes of (probability - [class is the label])^2, from 0 to
            2.

    Returns:
        `top5_accuracy`, `mean_class_accuracy` (over the classes that have images), `ece` and
        `adaptive_ece` in percent; `nll`, the mean of -log_probability, and `brier`, a mean.
    """
    labels = np.asarray(labels)
    classes = np.asarray(classes)
    probabilities = np.asarray(probabilities)
    correct = classes[:, 0] == labels
    confidence = probabilities[:, 0]
    images = np.bincount(labels)
    recalls = np.bincount(labels, correct)[images > 0] / images[images > 0]
    top5 = (classes == labels[:, None]).any(axis=1)
    measured = {"top5_accuracy": 100 * float(top5.mean())}
    # 63.125, not 63.12500000000001
    measured["mean_class_accuracy"] = round(100 * float(recalls.mean()), 9)
    # not -, which makes -0 of 0
    measured["nll"] = abs(float(np.mean(log_probability, dtype=np.float64)))
    measured["brier"] = float(np.mean(brier, dtype=np.float64))
    measured["ece"] = 100 * ece(confidence, correct)
    measured["adaptive_ece"] = 100 * adaptive_ece(confidence, correct)
    return measured


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """The expected calibration error (Guo et al., ICML 2017), from 0 to 1.

    Args:
        confidence: (images,), the probability of the predicted class.
        correct: (images,), whether it is the label.
        bins: their number, 15 in most papers; C-TPT has 20.
    """
    return float(gaps(confidence, correct, bins).sum())


def gaps(confidence: ArrayLike, correct: ArrayLike, bins: int) -> Floats:
    """(bins,): |accuracy - mean confidence| of each bin (lower, upper] of equal width, in single
    precision, times its share of the images.
    """
    import torch  # whose edges are those of the published code, to the bit

    edges = torch.linspace(0, 1, bins + 1).numpy()
    values = np.asarray(confidence, dtype=edges.dtype)
    places = np.searchsorted(edges, values, "left") - 1
    places[np.isnan(values)] = 0  # and so is the result
    return gaps_of(values, correct, places, bins)


def adaptive_ece(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """The calibration error over bins with equally many images (Nguyen and O'Connor, EMNLP 2015),
    from 0 to 1.

    Edges are quantiles by linear interpolation, and bins are [lower, upper), the last one closed;
    edges closer than 1e-8 are one.
    """
    values = np.asarray(confidence, dtype=np.float64)
    edges = np.percentile(values, np.linspace(0, 100, bins + 1))
    edges = edges[np.ediff1d(edges, to_begin=np.inf) > 1e-8]
    places = np.searchsorted(edges[1:-1], values, side="right")
    return float(gaps_of(values, correct, places, max(1, len(edges) - 1)).sum())


def gaps_of(
    confidence: Floats, correct: ArrayLike, places: NDArray[np.integer[Any]], bins: int
) -> Floats:
    """(bins,): see `gaps`; `places` is the bin of each image. The bin after the last has weight,
    but no members.
    """
    inside = places < bins
    both = (np.asarray(values, dtype=np.float64)[inside] for values in (correct, confidence))
    of_correct, of_confidence = (np.bincount(places[inside], values, bins) for values in both)
    counts = np.bincount(places[inside], minlength=bins)
    weights = np.bincount(np.minimum(places, bins - 1), minlength=bins) / len(confidence)
    return weights * abs(of_correct - of_confidence) / np.maximum(counts, 1)


def detection(known: ArrayLike, unknown: ArrayLike) -> dict[str, float]:
    """How well a score detects out-of-distribution images, in percent.

    Args:
        known, unknown: (images,), the scores of images of the classes, which count as positive, and
            of the others; they are higher for images of the classes.

    Returns:
        `auroc`; `aupr`, the average precision; and `fpr95`, the false-positive rate at the recall
        nearest to 0.95, of equally near ones the higher, at the lowest threshold that gives it (as
        in Hendrycks et al.'s code).
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve  # takes a second

    scores = np.concatenate([known, unknown], dtype=np.float64)
    positive = np.arange(len(scores)) < np.size(known)
    false_rates, recalls, _ = roc_curve(positive, scores, drop_intermediate=False)
    # The highest threshold that all images of the classes reach
    last = int(np.argmax(recalls == 1))
    false_rates = false_rates[1 : last + 1][::-1]
    recalls = recalls[1 : last + 1][::-1]
    return {
        "auroc": 100 * float(roc_auc_score(positive, scores)),
        "aupr": 100 * float(average_precision_score(positive, scores)),
        "fpr95": 100 * float(false_rates[np.argmin(abs(recalls - 0.95))]),
    }


def openworld_auc(
    base_scores: ArrayLike, new_scores: ArrayLike, base_correct: ArrayLike, new_correct: ArrayLike
) -> dict[str, float]:
    """OpenworldAUC (Hua et al., ICML 2025) and its parts, in percent.

    Args:
        base_scores, new_scores: (images,), of images of base and of new classes, higher for base.
        base_correct, new_correct: (images,), whether the answer among the base, or among the new
            classes is the label.

    Returns:
        `openworld_auc`, the share of pairs of a base and a new image that are in order and both
        right (a tie counts half); `auroc` of the scores; `base_accuracy`, `new_accuracy` and their
        harmonic mean `h`.
    """
    base = np.asarray(base_scores, dtype=np.float64)
    new = np.asarray(new_scores, dtype=np.float64)
    correct = np.asarray(base_correct, dtype=bool), np.asarray(new_correct, dtype=bool)
    pairs = len(base) * len(new) / 100
    base_accuracy, new_accuracy = (100 * float(answers.mean()) for answers in correct)
    return {
        "openworld_auc": in_order(base[correct[0]], new[correct[1]]) / pairs,
        "auroc": in_order(base, new) / pairs,
        "base_accuracy": base_accuracy,
        "new_accuracy": new_accuracy,
        "h": harmonic_mean(base_accuracy, new_accuracy),
    }


def in_order(higher: Floats, lower: Floats) -> float:
    """How many pairs are in order, those of equal values half."""
    ordered = np.sort(lower)
    above = np.searchsorted(ordered, higher, "left")
    at_least = np.searchsorted(ordered, higher, "right")
    return float(above.sum() + at_least.sum()) / 2
