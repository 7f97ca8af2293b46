from dataclasses import dataclass
from typing import Literal

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UsageError

from .base.feature_method import ChoosingSettings, FeatureSpec, FittedMethod, Support
from .base.head import SCALE, Head
from .base.prompted import normalize
from .base.teacher import SEVEN

ALPHAS = 1e-4, 1e-3, 0.01, 0.1, 1, 10, 100
OF_TEXT = 16  # images that the text of a new class counts as


@dataclass(frozen=True)
class GDASettings(ChoosingSettings):
    """SETTING base2new estimates base classes, and new ones from the K views nearest to their
    texts; auto takes it for runs on base or new classes. ALPHA weighs the classifier that zero-shot
    CLIP gets. 0: validation images choose.
    """

    AUGMENT_EPOCH: int = 10
    SETTING: Literal["auto", "few_shots", "base2new"] = "auto"
    K: int = 64
    ALPHA: int | float = 0.0
    ranges = {"AUGMENT_EPOCH": (0, 1000), "K": (2, 100_000), "ALPHA": (0, 1e6)}


class Gaussians(Head):
    """Gaussian classes with one covariance as a linear classifier, added to zero-shot CLIP (Wang et
    al., 2024, Sec. 3).

    W is (joint, classes), b (classes,). `rows` (n, joint): unit features of base images, where new
    classes need them.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        shapes = (width, classes), (classes,), (), (0, width)
        self.W, self.b, self.alpha, self.rows = (nn.Buffer(torch.zeros(shape)) for shape in shapes)

    def classify(self, image, text, scale):
        image = normalize(image)
        return SCALE * image @ text.T + self.alpha * (image @ self.W + self.b)

    def set(self, means: Tensor, precision: Tensor) -> None:
        """Set W and b from the means (classes, joint) and the inverse covariance."""
        weight = precision @ means.T
        bias = -torch.log(torch.tensor(float(len(means)))) - (means * weight.T).sum(dim=1) / 2
        self.W.data = weight.float()
        self.b.data = bias.float()


def inverse(covariance: Tensor) -> Tensor:
    """The pseudo-inverse (d, d). Eigenvalues below the rounding error of fp32, as in the official
    code, count as 0.
    """
    return torch.linalg.pinv(
        covariance, rtol=len(covariance) * torch.finfo(torch.float32).eps, hermitian=True
    )


def shrunk_inverse(covariance: Tensor, n: int) -> Tensor:
    """d pinv((n - 1) S + tr(S) I), of the covariance S (d, d) of n rows."""
    d = len(covariance)
    return d * inverse((n - 1) * covariance + covariance.trace() * torch.eye(d).to(covariance))


@TRAINER_REGISTRY.register()
class GDA(FittedMethod):
    """Gaussian discriminant analysis of the features, without training (Wang et al., ICLR 2024)."""

    Settings = GDASettings
    transfers = True
    checkpoint_folder = "gda"
    tensors_by_class = ("W", "b")
    spec = FeatureSpec(
        SEVEN, row_tensors=("rows",), chosen={"ALPHA": "1.0"}, trials=len(ALPHAS), needs_all=True
    )

    def build_head(self, classes, width, rows):
        return Gaussians(classes, width)

    def start(self, support: Support) -> None:
        """W and b of the classes of the images, in double precision: they are small differences of
        large numbers.
        """
        rows = normalize(support.rows).double()
        labels = support.row_labels
        counts = labels.bincount(minlength=len(self.head.b)).tolist()
        of_class = rows[labels.argsort(stable=True)].split(counts)
        means = torch.stack([part.mean(dim=0) for part in of_class])
        self.head.alpha.fill_(self.settings.ALPHA or 1)
        auto = "few_shots" if self.cfg.DATASET.SUBSAMPLE_CLASSES == "all" else "base2new"
        if (auto if self.settings.SETTING == "auto" else self.settings.SETTING) == "base2new":
            if len(rows) < self.settings.K or min(map(len, of_class)) < 2:
                raise UsageError(
                    f"GDA has {len(rows)} views of images",
                    "lower TRAINER.GDA.K, or raise AUGMENT_EPOCH",
                )
            precision = inverse(torch.stack([part.T.cov() for part in of_class]).mean(dim=0))
            self.head.rows = rows.float()
        else:
            precision = shrunk_inverse((rows - means[labels]).T.cov(), len(rows))
        self.head.set(means, precision)

    def fit(self, support):
        if self.settings.ALPHA:
            return
        counts = {alpha: self.correct_with(alpha) for alpha in ALPHAS}
        best = max(counts, key=lambda alpha: counts[alpha])
        self.head.alpha.fill_(best)
        print(f"{counts[best]} of {len(self.val[1])} validation images with alpha {best:g}")

    def correct_with(self, alpha: float) -> int:
        """The number of validation images that are classified correctly with this alpha."""
        self.head.alpha.fill_(alpha)
        return self.correct()

    def after_load(self, classes):
        if not classes.is_identical and len(classes.checkpoint_labels) < len(self.class_names):
            self.estimate(self.model.class_texts)

    @torch.no_grad()
    def estimate(self, texts: Tensor) -> None:
        """W and b of new classes by their unit text features (classes, joint); none without rows of
        base images.
        """
        rows = self.head.rows.double()
        texts = texts.double()
        k = self.settings.K
        if len(rows) < k:
            self.head.alpha.zero_()
            print("GDA has no views of base images: this test is that of zero-shot CLIP")
            return
        print("GDA estimates all classes of this test from their texts")
        means = []
        precision = torch.zeros_like(rows.T @ rows)
        for text in texts:
            near = rows[(rows @ text).topk(k).indices]
            means.append((near.sum(dim=0) + OF_TEXT * text) / (k + OF_TEXT))
            precision += shrunk_inverse((near - text).T @ (near - text) / (k - 1), k) / len(texts)
        self.head.set(torch.stack(means), precision)
