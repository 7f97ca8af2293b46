from dataclasses import dataclass, field

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from common.errors import UsageError

from .base.feature_method import (
    ChoosingSettings,
    FeatureMethod,
    FeatureSpec,
    FittedMethod,
    Support,
)
from .base.head import SCALE, Head
from .base.prompted import normalize
from .base.teacher import SEVEN


@dataclass(frozen=True)
class TipAdapterSettings(ChoosingSettings):
    """ALPHA and BETA, of tests, are chosen if they are 0, among SEARCH_STEP values below
    SEARCH_SCALE: [of beta, of alpha]. Keys are learned with INIT_ALPHA and INIT_BETA."""

    AUGMENT_EPOCH: int = 10
    ALPHA: int | float = 0.0
    BETA: int | float = 0.0
    INIT_ALPHA: int | float = 1.17
    INIT_BETA: int | float = 1.0
    SEARCH_SCALE: list[int | float] = field(default_factory=lambda: [7, 3])
    SEARCH_STEP: list[int] = field(default_factory=lambda: [200, 20])
    ranges = {"AUGMENT_EPOCH": (0, 1000)} | dict.fromkeys(
        ("ALPHA", "BETA", "INIT_ALPHA", "INIT_BETA"), (0, 1e6)
    )

    def check(self):
        for key in ("SEARCH_SCALE", "SEARCH_STEP"):
            values = getattr(self, key)
            if len(values) != 2 or not all(1 <= value <= 10_000 for value in values):
                remedy = "give two numbers from 1 to 10000: of beta and of alpha"
                raise UsageError(f"{key} is {values}", remedy)

    def values(self, key: str, place: int) -> list[float]:
        """Those of ALPHA or BETA to try, by its place in the SEARCH settings."""
        given = getattr(self, key)
        if given:
            return [given]
        steps = self.SEARCH_STEP[place]
        width = self.SEARCH_SCALE[place] - 0.1
        return [0.1 + step * width / steps for step in range(steps)]


class CacheHead(Head):
    """Training images vote for their classes, by their similarity to the image (Zhang et al., 2022,
    Sec. 3.1).

    Attributes:
        weight: (N, joint), the keys; learned ones are not of unit length.
        values: (N, classes), the labels as one-hot rows. Classes without training images have none:
            zero-shot CLIP.
    """

    def __init__(self, classes: int, width: int, rows: int, learned: bool):
        super().__init__()
        self.weight: Tensor = (nn.Parameter if learned else nn.Buffer)(torch.zeros(rows, width))
        self.values = nn.Buffer(torch.ones(rows, classes))
        self.alpha = nn.Buffer(torch.ones(()))
        self.beta = nn.Buffer(torch.ones(()))

    def votes(self, image: Tensor, beta: Tensor | float) -> Tensor:
        """(batch, classes), of images of unit length."""
        return torch.exp(beta * (image @ self.weight.T - 1)) @ self.values

    def classify(self, image, text, scale):
        image = normalize(image)
        return SCALE * image @ text.T + self.alpha * self.votes(image, self.beta)


class CacheMethod(FeatureMethod):
    Settings = TipAdapterSettings
    transfers = True  # new classes have no votes
    checkpoint_folder = "tip_adapter"
    tensors_by_class = ("weight", "values")
    spec = FeatureSpec(
        SEVEN,
        row_tensors=tensors_by_class,
        chosen={"ALPHA": "1.0", "BETA": "1.0"},
        keeps_pairs=True,
    )
    learned = False

    @property
    def trials(self) -> int:
        return len(self.settings.values("BETA", 0)) * len(self.settings.values("ALPHA", 1))

    def build_head(self, classes, width, rows):
        return CacheHead(classes, width, rows, self.learned)

    def start(self, support: Support) -> None:
        self.head.weight.data = normalize(support.views.mean(dim=0))
        self.head.values = torch.eye(self.head.values.shape[1], device=self.device)[support.labels]
        self.use(self.settings.INIT_ALPHA, self.settings.INIT_BETA)

    def use(self, alpha: float, beta: float) -> None:
        self.head.alpha.fill_(alpha)
        self.head.beta.fill_(beta)

    @torch.no_grad()
    def finish(self) -> None:
        """ALPHA and BETA: the first of the best, with beta in the outer loop."""
        alphas = self.settings.values("ALPHA", 1)
        betas = self.settings.values("BETA", 0)
        if self.settings.ALPHA and self.settings.BETA:
            self.use(self.settings.ALPHA, self.settings.BETA)
            return
        image = normalize(self.val[0])
        labels = self.val[1]
        zero_shot = SCALE * image @ self.model.class_texts.T
        counts = {}
        for beta in betas:
            votes = self.head.votes(image, beta)
            for alpha in alphas:
                answers = (zero_shot + alpha * votes).argmax(dim=1)
                counts[alpha, beta] = int((answers == labels).sum())
        alpha, beta = best = max(counts, key=lambda pair: counts[pair])
        values = f"alpha {alpha:.4g}, beta {beta:.4g}"
        print(f"{counts[best]} of {len(labels)} validation images with {values}")
        self.use(alpha, beta)


@TRAINER_REGISTRY.register()
class TipAdapter(CacheMethod, FittedMethod):
    """The training images as a cache, added to zero-shot CLIP, without training (Zhang et al., ECCV
    2022).
    """


@TRAINER_REGISTRY.register()
class TipAdapterF(CacheMethod):
    """Tip-Adapter whose keys are learned."""

    checkpoint_folder = "tip_adapter_f"
    learned = True
    schedule_steps = True
    keeps_last_batch = True

    def build_schedule(self, optimizer):
        return CosineAnnealingLR(optimizer, self.cfg.OPTIM.MAX_EPOCH * self.steps)
