"""Conf-OT: probabilities of calibration and test images together (transductive), for `Sets`."""

import numpy as np
from numpy.typing import ArrayLike

from common.errors import UsageError

from .calibration import checked
from .sample import Floats


def conf_ot(
    logits: ArrayLike,
    labels: ArrayLike,
    observed: bool = True,
    epsilon: float = 1.0,
    iterations: int = 3,
) -> Floats:
    """Log-probabilities by optimal transport of images to classes (Conf-OT; Silva-Rodriguez et al.,
    CVPR 2025).

    They are transductive: those of an image depend on all other images.

    Args:
        logits: (images, classes), of the calibration images and then of the test images.
        labels: of the calibration images.
        observed: take the shares of the classes from the labels; else all classes have the same.

    Raises:
        UsageError: a class has no label, whose share would be 0.
    """
    z = checked(logits)
    y = np.asarray(labels)
    checked(z[: len(y)], y)
    classes = z.shape[1]
    counts = np.bincount(y, minlength=classes) if observed else np.ones(classes)
    if not counts.all():
        fault = f"{int((counts == 0).sum())} of {classes} classes have no calibration image"
        raise UsageError(fault, "give one for each class, or let all classes have the same share")
    log_shares = np.log(counts / counts.sum())
    log_plan = z / epsilon  # logarithms, as exp(z) may overflow; its sum cancels in the first step
    for _ in range(iterations):
        log_plan += log_shares - np.logaddexp.reduce(log_plan, axis=0)
        log_plan -= np.logaddexp.reduce(log_plan, axis=1)[:, None]
    return log_plan
