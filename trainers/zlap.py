from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from .base.settings import MethodSettings
from .base.together import TogetherMethod, log_of
from .transclip import nearest, normalised, propagated, sparse


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

    def predict_task(self, images):
        classes = len(images.texts)
        known = images.features if images.support is None else images.support[0]
        similarities, nodes = self.similarities(known, known, images.texts)
        extremes = similarities.aminmax()
        graph = self.graph(self.scaled(similarities, *extremes).clamp(min=0), nodes, classes)
        labels = torch.eye(len(graph), classes, dtype=torch.float64, device=graph.device)
        scores = propagated(graph, labels, self.settings.ALPHA)
        if images.support is None:
            return log_of(scores[classes:])
        if self.settings.INDUCTIVE == "sparse":
            best = scores.argmax(dim=1, keepdim=True)
            scores = torch.zeros_like(scores).scatter(1, best, scores.gather(1, best))
        similarities, nodes = self.similarities(images.features, known, images.texts)
        # As published: clipped before they are scaled, not after
        weights = self.sharpened(self.scaled(similarities.clamp(min=0), *extremes), classes)
        return log_of(sparse(weights, nodes, len(scores)) @ scores)

    def similarities(self, x: Tensor, known: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The cosines of images x with their nearest images of `known` and then their nearest
        texts, (images, neighbours), and the nodes that these are: the texts come first.
        """
        near, places = nearest(x, known, self.settings.K)
        of_text, text_places = nearest(x, texts, min(self.settings.K, len(texts)))
        nodes = torch.cat([places + len(texts), text_places], dim=1)
        return torch.cat([near, of_text], dim=1), nodes

    def scaled(self, similarities: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """With SCALE_SIM, similarities scaled so that `low` and `high` become 0 and 1."""
        return (similarities - low) / (high - low) if self.settings.SCALE_SIM else similarities

    def sharpened(self, similarities: Tensor, classes: int) -> Tensor:
        """Weights of edges, fp64: similarities, those with texts raised to GAMMA; 0 where that is
        no number.
        """
        weights = similarities.double()
        texts = min(self.settings.K, classes)
        weights[:, -texts:] **= self.settings.GAMMA
        return weights.nan_to_num(0)

    def graph(self, similarities: Tensor, nodes: Tensor, classes: int) -> Tensor:
        """(nodes, nodes), sparse: the texts and then the images, normalised by their degrees.

        Args:
            similarities, nodes: of each image, (images, neighbours), 0 or more.
        """
        weights = self.sharpened(similarities, classes)
        own = torch.arange(len(weights), device=weights.device)[:, None] + classes
        weights = weights.masked_fill(nodes == own, 0)
        # A text has no edges but those of the images
        rows = F.pad(weights, (0, 0, classes, 0))
        return normalised(sparse(rows, F.pad(nodes, (0, 0, classes, 0)), len(rows)))
