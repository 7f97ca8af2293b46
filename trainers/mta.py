from dataclasses import dataclass

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from .base.prompted import normalize
from .base.test_time import ViewsMethod, ViewsSettings

STEPS = 5
INNER_STEPS = 5
CLOSE = 1e-6
NEIGHBOURS = 0.3  # share of the other views whose distances make the bandwidth of a view


@dataclass(frozen=True)
class MTASettings(ViewsSettings):
    """LAMBDA_Y is the temperature of the inlierness scores, LAMBDA_Q the weight of the agreement of
    predictions.
    """

    CTX_INIT: str = "a photo of a"
    LAMBDA_Y: int | float = 0.2
    LAMBDA_Q: int | float = 4.0
    ranges = {"LAMBDA_Y": (0.001, 1000), "LAMBDA_Q": (0, 1000)}


@TRAINER_REGISTRY.register()
class MTA(ViewsMethod):
    """The mode of the views' features, weighted by how well the views agree (Zanella and Ben Ayed,
    CVPR 2024).
    """

    Settings = MTASettings

    def logits_of_features(self, features, state):
        mode, _ = mean_shift(
            features, self.logits(features), self.settings.LAMBDA_Y, self.settings.LAMBDA_Q
        )
        return self.logits(mode[None])[0]


def bandwidths(features: Tensor) -> Tensor:
    """(views, joint) -> (views,): h^2 of each view, half the mean squared distance to its nearest
    ones.
    """
    nearest = max(1, int(NEIGHBOURS * (len(features) - 1)))
    squared = squared_distances(features, features)
    # The first is the view itself
    return squared.sort(dim=1).values[:, 1 : 1 + nearest].mean(dim=1) / 2


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def mean_shift(
    features: Tensor, logits: Tensor, lambda_y: float, lambda_q: float
) -> tuple[Tensor, Tensor]:
    """The mode (joint,), of unit length, and the inlierness of each view, (views,).

    Args:
        features: (views, joint), of unit length; the search starts from the first.
        logits: (views, classes).
        lambda_y, lambda_q: see `MTASettings`.
    """
    mode = features[0]
    inlierness = torch.full_like(features[:, 0], 1 / len(features))
    if len(features) == 1:
        return mode, inlierness
    p = logits.softmax(dim=1)
    width = 2 * bandwidths(features).clamp(min=torch.finfo(features.dtype).tiny)
    agreement = p @ p.T

    def density(mode: Tensor) -> Tensor:
        return (-squared_distances(features, mode[None])[:, 0] / width).exp()

    for _ in range(STEPS):
        near = density(mode)
        for _ in range(INNER_STEPS):
            before = inlierness
            inlierness = ((near + lambda_q * agreement @ inlierness) / lambda_y).softmax(dim=0)
            if (inlierness - before).norm() < CLOSE:
                break
        for _ in range(INNER_STEPS):
            before = mode
            weights = density(mode) * inlierness
            mode = normalize(weights @ features / weights.sum())
            if (mode - before).norm() < CLOSE:
                break
    return mode, inlierness
