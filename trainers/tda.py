"""Caches of test images that grow while they are tested."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from .base.settings import MethodSettings
from .base.teacher import EIGHTY, SEVEN
from .base.test_time import State, TemplatesSettings, ViewsMethod, in_random_order, most_confident

SCALE = 100.0  # of the logits, whatever CLIP's own scale is
CONFIDENT = 0.1  # share of the views that count
ENSEMBLES = dict.fromkeys(
    ("ImageNet", "ImageNetA", "ImageNetV2", "Caltech101", "StanfordCars", "SUN397"), SEVEN
)
ENSEMBLES |= dict.fromkeys(("ImageNetR", "ImageNetSketch"), EIGHTY)


@dataclass(frozen=True)
class TDASettings(TemplatesSettings):
    """Each cache keeps SHOT_CAPACITY images of a class, and weighs them by ALPHA and BETA. The
    negative cache takes images whose entropy is between the thresholds. It counts classes whose
    probability is between those of the mask. TEMPLATES replace the published ones. CHOOSE_ON says
    how the positive ALPHA and BETA were found; oracle: on test images, as those that were published
    for a dataset, which marks the results.
    """

    VIEWS: int = 1
    POSITIVE_ENABLED: bool = True
    POSITIVE_SHOT_CAPACITY: int = 3
    POSITIVE_ALPHA: int | float = 2.0
    POSITIVE_BETA: int | float = 5.0
    NEGATIVE_ENABLED: bool = True
    NEGATIVE_SHOT_CAPACITY: int = 2
    NEGATIVE_ALPHA: int | float = 0.117
    NEGATIVE_BETA: int | float = 1.0
    NEGATIVE_ENTROPY_THRESHOLD_LOWER: int | float = 0.2
    NEGATIVE_ENTROPY_THRESHOLD_UPPER: int | float = 0.5
    NEGATIVE_MASK_THRESHOLD_LOWER: int | float = 0.03
    NEGATIVE_MASK_THRESHOLD_UPPER: int | float = 1.0
    CHOOSE_ON: Literal["nothing", "oracle"] = "nothing"
    ranges = {"POSITIVE_SHOT_CAPACITY": (1, 1000), "NEGATIVE_SHOT_CAPACITY": (1, 1000)}


@TRAINER_REGISTRY.register()
class TDA(ViewsMethod):
    """Two caches of test images that grow while they are tested (Karmanov et al., CVPR 2024)."""

    Settings: ClassVar[type[MethodSettings]] = TDASettings
    kind = "transductive"
    found_by_oracle = ("POSITIVE_ALPHA", "POSITIVE_BETA")
    caveat = (
        "its published ALPHA and BETA differ by dataset, and were presumably chosen on test images"
    )

    @property
    def templates(self):
        data = self.cfg.DATASET
        published = () if data.get("TEMPLATE", "") else ENSEMBLES.get(data.NAME, ())
        return list(self.settings.TEMPLATES or published or [self.dataset_template])

    def order(self, images):
        return in_random_order(images, self.cfg.SEED)

    def new_state(self):
        text = self.texts
        state = {}
        classes, joint = text.shape
        for name in ("POSITIVE", "NEGATIVE"):
            slots = getattr(self.settings, f"{name}_SHOT_CAPACITY")
            state[f"{name}_FEATURES"] = text.new_zeros(classes, slots, joint)
            # Inf: there is none
            state[f"{name}_ENTROPIES"] = text.new_full((classes, slots), torch.inf)
        state["NEGATIVE_MASKS"] = torch.zeros(
            classes, slots, classes, dtype=torch.bool, device=text.device
        )
        return state

    def logits_of_features(self, features, state):
        s = self.settings
        feature, z, p = self.image(features)
        entropy = -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum()
        of_class = int(z.argmax())
        entry = {"FEATURES": feature, "ENTROPIES": entropy}
        if s.POSITIVE_ENABLED:
            keep("POSITIVE", of_class, entry, state)
            near = self.near("POSITIVE", feature, self.positives(features, state))
            z = z + s.POSITIVE_ALPHA * near.sum(dim=1)
        if s.NEGATIVE_ENABLED:
            # Of nats and bits, as published
            share = entropy / math.log2(max(2, len(z)))
            if s.NEGATIVE_ENTROPY_THRESHOLD_LOWER < share < s.NEGATIVE_ENTROPY_THRESHOLD_UPPER:
                mask = (p > s.NEGATIVE_MASK_THRESHOLD_LOWER) & (p < s.NEGATIVE_MASK_THRESHOLD_UPPER)
                self.keep_negative(of_class, entry | {"MASKS": mask}, state)
            near = self.near("NEGATIVE", feature, state).flatten()
            z = z - s.NEGATIVE_ALPHA * near @ state["NEGATIVE_MASKS"].flatten(0, 1).to(z.dtype)
        return z

    def image(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The feature (joint,), the logits and the probabilities (classes,) of an image, from its
        views."""
        return self.mean_of_views(features)

    def positives(self, features: Tensor, state: State) -> State:
        """The positive cache for an image."""
        return state

    def keep_negative(self, of_class: int, entry: dict[str, Tensor], state: State) -> None:
        keep("NEGATIVE", of_class, entry, state)

    def mean_of_views(self, features):
        """The feature (joint,), the logits and the probabilities (classes,): means over the
        confident views.
        """
        logits = SCALE * features @ self.texts.T
        kept = most_confident(logits, CONFIDENT)
        return (
            features[kept].mean(dim=0),
            logits[kept].mean(dim=0),
            logits[kept].softmax(dim=1).mean(dim=0),
        )

    def near(self, cache, feature, state):
        """(classes, slots): how near the images of a cache are to a feature (joint,); 0 for an
        empty slot.
        """
        cosines = state[f"{cache}_FEATURES"] @ feature
        near = (-getattr(self.settings, f"{cache}_BETA") * (1 - cosines)).exp()
        return near * state[f"{cache}_ENTROPIES"].isfinite()


def keep(cache: str, of_class: int, entry: dict, state: dict) -> None:
    """Put an image under a class, whose images are sorted by entropy, if it is surer than the last
    one there.
    """
    rows = {name: state[f"{cache}_{name}"][of_class] for name in entry}
    if entry["ENTROPIES"] < rows["ENTROPIES"][-1]:
        for name, row in rows.items():
            row[-1] = entry[name]
        order = rows["ENTROPIES"].argsort(stable=True)
        for row in rows.values():
            row.copy_(row[order])
