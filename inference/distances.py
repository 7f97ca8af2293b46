"""Distance-aware calibration (DAC; Wang et al., ICML 2024): how much less to trust answers of new
classes. It changes probabilities, and never the predicted class.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from trainers.base.method import Method
from trainers.base.prompted import PromptedCLIP
from trainers.base.teacher import encode_texts

from .sample import Floats

SAME_CLASS = 0.05  # the distance below which two texts mean one class


@dataclass(frozen=True)
class Distances:
    """Factors of the classes: the logits of an image are multiplied by that of its most likely
    class.
    """

    factors: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        zero_shot: ArrayLike,
        tuned: ArrayLike,
        base_zero_shot: ArrayLike,
        base_tuned: ArrayLike,
        k: int = 5,
    ) -> Self:
        """From text features alone, each of any length.

        Args:
            zero_shot, tuned: (classes, joint), of the classes to answer, by the frozen CLIP and by
                the model.
            base_zero_shot, base_tuned: (base, joint), of the classes that the model was learned on.
            k: how many of these count, the nearest. Sums of distances are divided by k, also if
                there are fewer.
        """
        before = distances(zero_shot, base_zero_shot)
        after = distances(tuned, base_tuned)
        moved = (before[:, :k].sum(axis=1) - after[:, :k].sum(axis=1)) / k
        return cls(tuple(np.where(after[:, 0] < SAME_CLASS, 1.0, np.exp(moved)).tolist()))

    def apply(self, logits: ArrayLike) -> Floats:
        """(images, classes) -> the same, multiplied by the factor of the largest logit."""
        z = np.asarray(logits, dtype=np.float64)
        return z * np.asarray(self.factors)[z.argmax(axis=1), None]


def distances(features: ArrayLike, others: ArrayLike) -> Floats:
    """(n, others): the Euclidean distances of the unit features, for each feature the least
    first.
    """
    from scipy.spatial.distance import cdist

    pair = (np.asarray(rows, dtype=np.float64) for rows in (features, others))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pair]
    return np.sort(cdist(*unit), axis=1)


@torch.no_grad()
def distances_of(method: Method, learned: Method, sentence: str) -> Distances | None:
    """DAC for the classes of a method; None if its texts depend on the image, or it has none.

    Args:
        learned: the same for the classes that it was learned on.
        sentence: of zero-shot CLIP, with {} for the class name.
    """
    pairs = []
    for each in (method, learned):
        tuned = compared_with(each.model)
        if tuned.dim() != 2 or not tuned.numel():
            return None
        texts = [sentence.replace("{}", name) for name in each.class_names]
        pairs.append((encode_texts(each.model.frozen, texts, each.device).cpu(), tuned.cpu()))
    (zero_shot, of_method), (base_zero_shot, of_learned) = pairs
    return Distances.fit(zero_shot, of_method, base_zero_shot, of_learned)


def compared_with(model: PromptedCLIP) -> Tensor:
    """What images are compared with, (classes, joint); of another shape if it depends on the
    image.
    """
    scale = model.clip.logit_scale
    return model.text_features(torch.zeros(1, model.clip.visual.output_dim, device=scale.device))
