"""The heads that only `tools/fit.py` makes: the weighted sums of heads of several methods."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, projection

from .feature_method import FeatureMethod, FeatureSettings, FeatureSpec
from .head import Head
from .projection import Projection
from .prompted import normalize
from .vision import KernelHead, UnprojectedMethod, VisionHead


@dataclass(frozen=True)
class LinearSettings(FeatureSettings):
    """MEMBERS are the heads of the sum, with their settings; WEIGHTS are the factors of their
    logits.
    """

    MEMBERS: list[str] = ()  # type: ignore[assignment]
    WEIGHTS: list[float] = ()  # type: ignore[assignment]
    ranges = {"WEIGHTS": (0, 1e12)}


class LinearHead(Head):
    """A weight vector and a bias for each class, of features of unit length."""

    name = "linear"

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(classes), requires_grad=False)

    def classify(self, image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
        return F.linear(normalize(image).to(self.weight), self.weight, self.bias)


class Linear(FeatureMethod):
    """The weighted sum of linear heads; it is not a method that a run trains."""

    Settings = LinearSettings
    saved_as = "linear"
    reads_template = reads_sentences = False
    spec = FeatureSpec(reads_text=False)

    def build_head(self, classes: int, width: int, rows: int) -> LinearHead:
        return LinearHead(classes, width)


class EnsembleHead(VisionHead):
    """`VisionHead`, and a weight vector for each class of projected features of unit length."""

    name = "ensemble"

    def __init__(self, classes: int, clip: CLIP):
        super().__init__(classes, clip)
        self.projection = Projection(clip, learns=False) if projection(clip) else None
        self.of_projected = nn.Buffer(torch.zeros(classes, clip.visual.output_dim))

    def classify(self, image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
        projected = self.projection.project(image) if self.projection else image
        logits = super().classify(image, text, scale)
        return logits + F.linear(normalize(projected).to(self.of_projected), self.of_projected)


class Ensemble(UnprojectedMethod):
    """The weighted sum of linear heads on features before the projection, and behind it."""

    Settings = LinearSettings
    saved_as = "ensemble"

    def build_prompts(self, clip: CLIP, classnames: list[str]) -> EnsembleHead:
        return EnsembleHead(len(classnames), clip)


class KernelEnsembleHead(EnsembleHead):
    """`EnsembleHead`, and a kernel with the training images."""

    name = "kernel_ensemble"

    def __init__(self, classes: int, clip: CLIP, rows: int):
        super().__init__(classes, clip)
        self.kernel = KernelHead(classes, clip, rows)

    def classify(self, image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
        return super().classify(image, text, scale) + self.kernel.classify(image, text, scale)


class KernelEnsemble(Ensemble):
    """`Ensemble` with a `KernelProbe`."""

    saved_as = "kernel_ensemble"
    spec = FeatureSpec(reads_text=False, row_tensors=("kernel.rows", "kernel.of_rows"))

    def build_prompts(self, clip: CLIP, classnames: list[str]) -> KernelEnsembleHead:
        return KernelEnsembleHead(len(classnames), clip, self.n_train)
