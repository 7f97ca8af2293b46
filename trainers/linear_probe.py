import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import nn

from common.errors import UsageError

from .base.feature_method import ChoosingSettings, FeatureSpec, FittedMethod
from .base.head import Head

# Values of C that `search` tries: powers of ten, the ends around the best, and halvings
TRIALS = 7 + 2 + 6


@dataclass(frozen=True)
class LinearProbeSettings(ChoosingSettings):
    """C is the inverse strength of the L2 penalty; 0 asks for a search on the validation images."""

    C: int | float = 0.0
    ranges = {"C": (0, 1_000_000_000)}


class ProbeWeights(Head):
    """A weight vector and a bias for each class."""

    name = "linear_probe"

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))

    def classify(self, image, text, scale):
        return F.linear(image, self.weight, self.bias)


def fit(features: np.ndarray, labels: np.ndarray, c: float):
    """scikit-learn's logistic regression with at most 1000 steps of L-BFGS, as in CoOp's code.

    Args:
        features: (images, joint).
        labels: (images,), each class among them.
        c: the inverse strength of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # A weak penalty may need more steps: the search does not choose it then
        warnings.simplefilter("ignore")
        return LogisticRegression(C=c, max_iter=1000).fit(features, labels)


def search(accuracy: Callable[[float], float]) -> float:
    """x for CoOp's C = 10^x: the best of seven powers of ten, then eight halvings of the two
    decades around it.

    `accuracy` is that of a probe on the validation images. Of equal powers of ten the largest is
    taken; of equal ends of an interval the lower one.
    """
    accuracy = cache(accuracy)
    best = max(map(float, range(6, -7, -2)), key=accuracy)
    low = best - 1
    high = best + 1
    for _ in range(8):
        middle = (low + high) / 2
        if accuracy(low) < accuracy(high):
            low = middle
            best = high
        else:
            high = middle
            best = low
    return best


@TRAINER_REGISTRY.register()
class LinearProbe(FittedMethod):
    """A linear classifier of the frozen image features, without text (Radford et al., 2021; search
    as in CoOp).
    """

    Settings = LinearProbeSettings
    checkpoint_folder = "linear_probe"
    checkpoint_has_learner_only = False
    reads_template = reads_sentences = False
    spec = FeatureSpec(
        reads_text=False,
        chosen={"C": "1.0"},
        trials=TRIALS,
        needs_all=True,
        keeps_pairs=True,
    )

    def build_head(self, classes, width, rows):
        if classes < 2:
            raise UsageError(
                f"LinearProbe has {classes} class to choose from", "give it two or more"
            )
        return ProbeWeights(classes, width)

    def fit(self, support):
        features = support.rows.cpu().numpy()
        labels = support.row_labels.cpu().numpy()
        c = self.settings.C or self.choose_c(features, labels)
        probe = fit(features, labels, c)
        weight, bias = (
            torch.from_numpy(array).float() for array in (probe.coef_, probe.intercept_)
        )
        if len(bias) == 1:  # of two classes scikit-learn has the second one's only
            weight, bias = (torch.cat([0 * tensor, tensor]) for tensor in (weight, bias))
        self.head.load_state_dict({"weight": weight, "bias": bias})
        print(f"C {c:.4g}: {100 * probe.score(features, labels):.1f}% of the training images")

    def choose_c(self, features: np.ndarray, labels: np.ndarray) -> float:
        """C by `search` on the validation images."""
        val_features, val_labels = (tensor.cpu().numpy() for tensor in self.val)
        x = search(lambda x: fit(features, labels, 10**x).score(val_features, val_labels))
        return 10**x
