"""Classifiers of image features before the projection, without texts, which only `tools/fit.py`
makes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, projection

from .base.feature_method import FeatureMethod, FeatureSettings, FeatureSpec, FittedMethod, Support
from .base.head import Head
from .base.projection import Projection, UnprojectedCLIP, last_map, remove_projection
from .base.prompted import normalize

MOST_TARGETS = 2 * 10**7  # numbers of a regression at a time: classes are independent
MOST_ROWS = 2_000  # training images that a model keeps for its kernel


@dataclass(frozen=True)
class VisionProbeSettings(FeatureSettings):
    """RIDGE is the penalty of the regression, relative to the mean square of the features."""

    RIDGE: int | float = 1.0
    ranges = {"RIDGE": (1e-6, 1e6)}


def width_of(clip: CLIP) -> int:
    """Numbers of an image feature before the projection; after it, if the tower has none."""
    if not projection(clip):
        return clip.visual.output_dim
    last = last_map(clip)
    return last.in_features if isinstance(last, nn.Linear) else len(last)


class UnprojectedHead(Head):
    """A head on `centred` features from before the projection.

    Attributes:
        mean: (width,), of the unit features of the training images.
        bias: (classes,).
    """

    def __init__(self, classes: int, clip: CLIP):
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(width_of(clip)))
        self.bias = nn.Buffer(torch.zeros(classes))

    def centred(self, image: Tensor) -> Tensor:
        """Features (n, width) of unit length, less their mean, and again of unit length."""
        return normalize(normalize(image) - self.mean)

    def install(self, clip: CLIP) -> None:
        if projection(clip):
            remove_projection(clip)


class VisionHead(UnprojectedHead):
    """A weight vector for each class."""

    name = "vision"

    def __init__(self, classes: int, clip: CLIP):
        super().__init__(classes, clip)
        self.weight = nn.Buffer(torch.zeros(classes, len(self.mean)))

    def classify(self, image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
        return F.linear(self.centred(image).to(self.weight), self.weight, self.bias)


class KernelHead(UnprojectedHead):
    """The similarities to the training images, times a weight of each for each class.

    Attributes:
        rows: (N, width), the centred features of the training images.
        of_rows: (N, classes), the weights.
        distance: at which the similarity is 1/e.
    """

    name = "kernel"

    def __init__(self, classes: int, clip: CLIP, rows: int):
        super().__init__(classes, clip)
        self.rows = nn.Buffer(torch.zeros(rows, len(self.mean)))
        self.of_rows = nn.Buffer(torch.zeros(rows, classes))
        self.distance = nn.Buffer(torch.ones(()))

    def distances(self, features: Tensor) -> Tensor:
        """(n, N), of centred features."""
        # In fp32, those near 0 depend on how many images are asked together
        x = features.double()
        rows = self.rows.double()
        squares = x.square().sum(dim=1, keepdim=True) + rows.square().sum(dim=1) - 2 * x @ rows.T
        return squares.clamp_min(0).sqrt().to(features)

    def classify(self, image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
        similarities = torch.exp(-self.distances(self.centred(image)) / self.distance)
        return similarities.to(self.of_rows) @ self.of_rows + self.bias

    def times(self, factor: float) -> "KernelHead":
        """This head, whose logits are now so many times as large."""
        self.of_rows.mul_(factor)
        self.bias.mul_(factor)
        return self


class FrozenTower:
    """The image tower of a CLIP, as heads on its features read it.

    Attributes:
        model: its image features are those before the projection (images, width).
        projection: None if the tower has none.
    """

    def __init__(self, clip: CLIP):
        device = clip.logit_scale.device
        with device:
            self.model = UnprojectedCLIP(clip, VisionHead(1, clip))
        self.projection: Projection | None = None
        if projection(clip):
            self.projection = Projection(clip, learns=False).to(device)

    def inputs(self, model: type, features: Tensor) -> Tensor:
        """The inputs of a class of models: features from before the projection, or those behind
        it (images, joint).
        """
        if self.projection is None or issubclass(model, UnprojectedCLIP):
            return features
        return self.projection.project(features).detach()


class UnprojectedMethod(FeatureMethod):
    """A method on features before the projection, without texts. No run trains it."""

    Model = UnprojectedCLIP
    reads_template = reads_sentences = False
    spec = FeatureSpec(reads_text=False)


class VisionProbe(UnprojectedMethod, FittedMethod):
    """A ridge regression from centred features to one-hot labels."""

    Settings = VisionProbeSettings
    checkpoint_folder = "vision_probe"

    def build_prompts(self, clip: CLIP, classnames: list[str]) -> VisionHead:
        return VisionHead(len(classnames), clip)

    def fit(self, support: Support) -> None:
        self.head.mean.copy_(normalize(support.rows).mean(dim=0))
        rows = self.head.centred(support.rows).double()
        targets = one_hot(support.row_labels, len(self.class_names))
        weight, bias = ridge(rows, targets, self.settings.RIDGE)
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)


@dataclass(frozen=True)
class KernelProbeSettings(FeatureSettings):
    """RIDGE is added to the diagonal of the kernel, which is 1."""

    RIDGE: int | float = 0.1
    ranges = {"RIDGE": (1e-6, 1e6)}


class KernelProbe(UnprojectedMethod, FittedMethod):
    """`VisionProbe` with the kernel exp(-distance / median distance) instead of a linear one
    (kernel ridge regression, Saunders et al., 1998; the Matern kernel of 1/2). Of more images than
    MOST_ROWS it learns from so many, evenly spaced.
    """

    Settings = KernelProbeSettings
    checkpoint_folder = "kernel_probe"
    spec = FeatureSpec(reads_text=False, row_tensors=("rows", "of_rows"))

    def build_prompts(self, clip: CLIP, classnames: list[str]) -> KernelHead:
        return KernelHead(len(classnames), clip, self.n_train)

    def fit(self, support: Support) -> None:
        head = self.head
        head.mean.copy_(normalize(support.rows).mean(dim=0))
        images = len(support.rows)
        places = torch.linspace(0, images - 1, min(images, MOST_ROWS)).long()
        head.rows = head.centred(support.rows[places])
        labels = support.row_labels[places]
        distances = head.distances(head.rows).fill_diagonal_(0)
        apart = distances[distances > 0]
        if len(apart):
            head.distance.copy_(apart.median())
        kernel = torch.exp(-distances / head.distance).double()
        kernel += self.settings.RIDGE * torch.eye(len(kernel)).to(kernel)
        targets = torch.cat(list(one_hot(labels, len(self.class_names))), dim=1)
        shares = targets.mean(dim=0)
        head.bias.copy_(shares)
        head.of_rows = torch.linalg.solve(kernel, targets - shares).float()


def one_hot(labels: Tensor, classes: int) -> Iterator[Tensor]:
    """Labels (n,) as columns of 0 and 1 (n, some), of some of the classes at a time."""
    numbers = torch.arange(classes, device=labels.device)
    for part in numbers.split(max(1, MOST_TARGETS // len(labels))):
        yield (labels[:, None] == part).double()


def ridge(rows: Tensor, targets: Iterable[Tensor], penalty: float) -> tuple[Tensor, Tensor]:
    """(targets, width) and (targets,): weights and biases of a ridge regression from rows (n,
    width) to targets, which come in parts (n, some). The penalty is relative to the mean square of
    centred rows.
    """
    mean = rows.mean(dim=0)
    centred = rows - mean
    own = penalty * float(centred.square().sum()) / len(rows) or 1.0  # 1 if all rows are equal
    is_wide = len(rows) < len(mean)  # the smaller of two systems with the same solution
    system = centred @ centred.T if is_wide else centred.T @ centred
    system = system + own * torch.eye(len(system)).to(system)
    weights = []
    biases = []
    for part in targets:
        shares = part.mean(dim=0)
        residual = part - shares
        if is_wide:
            weight = centred.T @ torch.linalg.solve(system, residual)
        else:
            weight = torch.linalg.solve(system, centred.T @ residual)
        weights.append(weight.T)
        biases.append(shares - mean @ weight)
    return torch.cat(weights), torch.cat(biases)


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
    checkpoint_folder = "linear"
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
    checkpoint_folder = "ensemble"

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

    checkpoint_folder = "kernel_ensemble"
    spec = FeatureSpec(reads_text=False, row_tensors=("kernel.rows", "kernel.of_rows"))

    def build_prompts(self, clip: CLIP, classnames: list[str]) -> KernelEnsembleHead:
        return KernelEnsembleHead(len(classnames), clip, self.n_train)
