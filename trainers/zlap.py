from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY

from .base.neighbours import nearest, normalised, propagated, sparse
from .base.settings import MethodSettings
from .base.together import TogetherMethod, log_of


@dataclass(frozen=True)
class ZLaPSettings(MethodSettings):
    """Each image has K - 1 nearest images and K nearest texts; cosines with texts are raised to
    GAMMA. ALPHA is how much of a label the neighbours get. SCALE_SIM scales the cosines to
    0..1. INDUCTIVE answers for each image alone, by a graph of the training images without their
    labels; sparse keeps the best class of each of these only.
    """

    K: int = 5
    GAMMA: int | float = 5.0
    ALPHA: float = 0.3
    SCALE_SIM: bool = False
    INDUCTIVE: Literal["", "dense", "sparse"] = ""
    ranges = {"K": (2, 1000), "GAMMA": (0, 100), "ALPHA": (0, 0.99)}


@TRAINER_REGISTRY.register()
class ZLaP(TogetherMethod):
    """Labels that go from the texts over a graph of the images (Stojnic et al., CVPR 2024)."""

    Settings = ZLaPSettings

    @property
    def least_images(self):
        return self.settings.K

    @property
    def reads_support(self):
        return bool(self.settings.INDUCTIVE)

    def answer(self, images):
        classes = len(images.texts)
        known = images.features if images.support is None else images.support[0]
        graph = self.graph(known, images.texts)
        labels = torch.eye(len(graph), classes, dtype=torch.float64, device=graph.device)
        scores = propagated(graph, labels, self.settings.ALPHA)
        if images.support is None:
            return log_of(scores[classes:])
        if self.settings.INDUCTIVE == "sparse":
            best = scores.argmax(dim=1, keepdim=True)
            scores = torch.zeros_like(scores).scatter(1, best, scores.gather(1, best))
        weights, places = self.edges(images.features, known, images.texts, clips_first=True)
        return log_of(sparse(weights, places, len(scores)) @ scores)

    def edges(self, x, known, texts, clips_first=False):
        """The weights of the nearest texts and known images of each image, fp64, and the nodes that
        these are: the texts come first. Both are (images, neighbours).
        """
        s = self.settings
        near, places = nearest(x, known, s.K)
        of_text, text_places = nearest(x, texts, min(s.K, len(texts)))
        both = torch.cat([near, of_text], dim=1)
        if clips_first:
            both = both.clamp(min=0)
        if s.SCALE_SIM:
            low, high = both.aminmax()
            both = (both - low) / (high - low)
        both = both.clamp(min=0).double()
        both[:, near.shape[1] :] **= s.GAMMA
        return both, torch.cat([places + len(texts), text_places], dim=1)

    def graph(self, x, texts):
        """(nodes, nodes), sparse: the texts and then the images, normalised by their degrees."""
        weights, columns = self.edges(x, x, texts)
        own = torch.arange(len(x), device=x.device)[:, None] + len(texts)
        weights = weights.masked_fill(columns == own, 0)
        # A text has no edges but those of the images
        rows = F.pad(weights, (0, 0, len(texts), 0))
        half = sparse(rows, F.pad(columns, (0, 0, len(texts), 0)), len(rows))
        return normalised(half)
