"""The expected calibration error of the code of Wang et al. (ICML 2024)."""

import numpy as np

from measures.metrics import gaps_of


def ece_below(confidence, correct, bins):
    """With bins [lower, upper) in double precision; a confidence of 1 is in no bin, and yet counts
    in the weight of the last one.
    """
    values = np.asarray(confidence, dtype=np.float64)
    places = np.searchsorted(np.linspace(0, 1, bins + 1), values, "right") - 1
    return float(gaps_of(values, correct, places, bins).sum())
