from dataclasses import dataclass, field

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UsageError

from .base.feature_method import ChoosingSettings, FeatureSpec, FittedMethod, Support
from .base.head import Head
from .base.prompted import normalize
from .base.teacher import SEVEN

MOST_ROWS = 20_000  # of training images: their kernels take 7.2 GB


@dataclass(frozen=True)
class ProKeRSettings(ChoosingSettings):
    """BETA is the sharpness of the kernel. LAMBDA divides the kernel before one is added to its
    diagonal. Those that are 0 are chosen from GRID_BETA and GRID_LAMBDA: [first, last, number of
    values].
    """

    AUGMENT_EPOCH: int = 10
    BETA: int | float = 0.0
    LAMBDA: int | float = 0.0
    GRID_BETA: list[int | float] = field(default_factory=lambda: [1.5, 3, 10])
    GRID_LAMBDA: list[int | float] = field(default_factory=lambda: [0.05, 0.25, 10])
    ranges = {"AUGMENT_EPOCH": (0, 1000), "BETA": (0, 1e6), "LAMBDA": (0, 1e6)}

    def check(self):
        for key in ("GRID_BETA", "GRID_LAMBDA"):
            grid = getattr(self, key)
            in_range = len(grid) == 3 and all(0 < value <= 10_000 for value in grid)
            if not in_range or type(grid[2]) is not int:
                remedy = "give the first and the last value and their number: [0.5, 3, 20]"
                raise UsageError(f"{key} is {grid}", remedy)

    def values(self, key: str) -> list[float]:
        """Those of BETA or LAMBDA to try: the given one alone, or all of its grid."""
        given = getattr(self, key)
        return [given] if given else torch.linspace(*getattr(self, f"GRID_{key}")).tolist()


class KernelRegression(Head):
    """What zero-shot CLIP lacks on the training images, by kernel ridge regression (Bendou et al.,
    2025, Sec. 3).

    Attributes:
        rows: (N, joint), unit features of the training images.
        values: (N, classes), their labels as one-hot rows; 0 for classes that they do not show.
        coefficients: (N, classes), those of the kernel.
    """

    def __init__(self, classes: int, width: int, rows: int):
        super().__init__()
        self.rows = nn.Buffer(torch.zeros(rows, width))
        self.values = nn.Buffer(torch.zeros(rows, classes))
        self.beta = nn.Buffer(torch.ones(()))
        self.lambda_ = nn.Buffer(torch.ones(()))
        self.coefficients = nn.Buffer(torch.zeros(rows, classes), persistent=False)

    def kernel(self, image: Tensor, beta: Tensor | float) -> Tensor:
        """(batch, N), of images of unit length."""
        return torch.exp(-beta * (1 - image @ self.rows.T))

    def residual(self, text: Tensor) -> Tensor:
        """(N, classes), fp64: the labels of the training images without the cosines with the texts
        (classes, joint).
        """
        return (self.values - self.rows @ text.T).double()

    def classify(self, image, text, scale):
        image = normalize(image)
        return image @ text.T + self.kernel(image, self.beta) @ self.coefficients

    def solve(self, text: Tensor, beta: Tensor | float, lambda_: Tensor | float) -> None:
        """Set the coefficients, in double precision, for these values."""
        self.beta.fill_(beta)
        self.lambda_.fill_(lambda_)
        kernel = (self.kernel(self.rows, self.beta) / self.lambda_).double()
        kernel.diagonal().add_(1)
        self.coefficients = torch.linalg.solve(kernel, self.residual(text)).float()


@TRAINER_REGISTRY.register()
class ProKeR(FittedMethod):
    """Kernel ridge regression of the labels, from the cosines of zero-shot CLIP (Bendou et al.,
    CVPR 2025).
    """

    Settings = ProKeRSettings
    transfers = True  # new classes have the label 0 for all training images
    checkpoint_folder = "proker"
    tensors_by_class = ("values",)
    spec = FeatureSpec(
        SEVEN, row_tensors=("rows", "values"), chosen={"BETA": "2.0", "LAMBDA": "0.1"}
    )

    @property
    def trials(self) -> int:
        return len(self.settings.values("BETA")) * len(self.settings.values("LAMBDA"))

    def build_head(self, classes, width, rows):
        return KernelRegression(classes, width, rows)

    @classmethod
    def check_size(cls, images, classes):
        if images > MOST_ROWS:
            size = f"{images:,} views of images"
            fault = f"ProKeR has {size}, and solves an equation of as many unknowns"
            remedy = f"lower TRAINER.PROKER.AUGMENT_EPOCH: {MOST_ROWS:,} is the most"
            raise UsageError(fault, remedy)

    def start(self, support: Support) -> None:
        """The kernel's rows and values; BETA and LAMBDA are those of the settings, or the first of
        their grids.
        """
        self.head.rows.data = normalize(support.rows)
        self.head.values.data = torch.eye(self.head.values.shape[1], device=self.device)[
            support.row_labels
        ]
        self.head.solve(
            self.model.class_texts, *(self.settings.values(key)[0] for key in ("BETA", "LAMBDA"))
        )

    def finish(self) -> None:
        """BETA and LAMBDA: the first of the best, with beta in the outer loop."""
        if self.trials == 1:
            return
        counts = {
            pair: correct
            for beta in self.settings.values("BETA")
            for pair, correct in self.counts_of(beta).items()
        }
        beta, lambda_ = best = max(counts, key=lambda pair: counts[pair])
        self.head.solve(self.model.class_texts, beta, lambda_)
        values = f"beta {beta:.4g}, lambda {lambda_:.4g}"
        print(f"{counts[best]} of {len(self.val[1])} validation images with {values}")

    def counts_of(self, beta: float) -> dict:
        """How many validation images are right with this beta and each LAMBDA. With the
        eigenvectors of the kernel, each LAMBDA only scales what is between two products.
        """
        head = self.head
        text = self.model.class_texts
        image = normalize(self.val[0])
        eigenvalues, vectors = torch.linalg.eigh(head.kernel(head.rows, beta).double())
        left = head.kernel(image, beta).double() @ vectors
        right = vectors.T @ head.residual(text)
        zero_shot = image @ text.T
        counts = {}
        for lambda_ in self.settings.values("LAMBDA"):
            logits = zero_shot + left * (lambda_ / (eigenvalues + lambda_)) @ right
            counts[beta, lambda_] = int((logits.argmax(dim=1) == self.val[1]).sum())
        return counts

    def after_load(self, classes):
        self.head.solve(self.model.class_texts, self.head.beta, self.head.lambda_)
