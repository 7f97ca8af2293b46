from dataclasses import dataclass

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from .base.test_time import TemplatesSettings, ViewsMethod, entropies


@dataclass(frozen=True)
class ZEROSettings(TemplatesSettings):
    """SELECTION is the share of the views that vote, the most confident. TEMPLATES replace the
    sentence of CTX_INIT.
    """

    CTX_INIT: str = "a photo of a"
    SELECTION: float = 0.3
    ranges = {"SELECTION": (0, 1)}


@TRAINER_REGISTRY.register()
class ZERO(ViewsMethod):
    """A vote of the confident views, at temperature zero (Farina et al., NeurIPS 2024)."""

    Settings = ZEROSettings

    def logits_of_features(self, features, state):
        cosines = features @ self.texts.T
        return votes(cosines, entropies(self.logits(features)), self.settings.SELECTION)


def votes(cosines: Tensor, entropies: Tensor, share: float) -> Tensor:
    """The votes for each class, (classes,).

    If several classes have the most votes, the most confident of the other views whose best class
    is one of them decides. If there is none, the best of these classes in the most confident of the
    other views gets its vote; the published code means that, and chooses another class by a slip in
    its mask.

    Args:
        cosines: (views, classes).
        entropies: (views,), of the scaled cosines.
        share: of the views that vote.
    """
    order = entropies.argsort(stable=True)
    kept = max(1, int(len(order) * share))
    # Temperature zero: one vote for the best class, shared by classes that are equally good.
    ballots = (cosines[order] / torch.finfo(cosines.dtype).eps).softmax(dim=1)
    total = ballots[:kept].sum(dim=0)
    tied = total == total.max()
    rest = cosines[order[kept:]]
    if tied.sum() > 1 and len(rest):
        best = rest.argmax(dim=1)
        deciding = tied[best].nonzero().flatten()
        winner = (
            best[deciding[0]] if len(deciding) else rest[0].masked_fill(~tied, -torch.inf).argmax()
        )
        total[winner] += 1
    return total
