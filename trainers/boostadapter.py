from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY

from .base.test_time import entropies, most_confident
from .tda import CONFIDENT, SCALE, TDA, TDASettings, keep


@dataclass(frozen=True)
class BoostAdapterSettings(TDASettings):
    """DELTA are the slots that the positive cache has more for the views of an image. FIRST_VIEW
    classifies the image itself; else the mean of its confident views is classified.
    """

    VIEWS: int = 64
    DELTA: int = 0
    FIRST_VIEW: bool = True
    ranges = {**TDASettings.ranges, "DELTA": (0, 1000)}


@TRAINER_REGISTRY.register()
class BoostAdapter(TDA):
    """TDA whose positive cache also has the confident views of the present image (Zhang et al.,
    NeurIPS 2024).
    """

    Settings = BoostAdapterSettings

    def image(self, features):
        if not self.settings.FIRST_VIEW:
            return self.mean_of_views(features)
        logits = SCALE * features[0] @ self.texts.T
        return features[0], logits, logits.softmax(dim=0)

    def positives(self, features, state):
        slots = self.settings.DELTA
        boosted = {
            "POSITIVE_FEATURES": F.pad(state["POSITIVE_FEATURES"], (0, 0, 0, slots)),
            "POSITIVE_ENTROPIES": F.pad(state["POSITIVE_ENTROPIES"], (0, slots), value=inf),
        }
        logits = SCALE * features @ self.texts.T
        number = int(CONFIDENT * len(features))  # none of a single view
        for view in most_confident(logits, CONFIDENT)[:number].tolist():
            entry = {"FEATURES": features[view], "ENTROPIES": entropies(logits[view])}
            keep("POSITIVE", int(logits[view].argmax()), entry, boosted)
        return boosted

    def keep_negative(self, of_class, entry, state):
        """The first one in is the first one out."""
        taken = int(state["NEGATIVE_ENTROPIES"][of_class].isfinite().sum())
        for name, value in entry.items():
            row = state[f"NEGATIVE_{name}"][of_class]
            if taken == len(row):
                row.copy_(torch.roll(row, -1, dims=0))
            row[min(taken, len(row) - 1)] = value
