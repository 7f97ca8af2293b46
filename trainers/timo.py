from dataclasses import dataclass
from functools import cached_property

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UsageError

from .base.feature_method import ChoosingSettings, FeatureSpec, FittedMethod, Support
from .base.head import Head
from .base.prompted import normalize
from .base.teacher import SEVEN, mean_text_features
from .gda import shrunk_inverse

ALPHAS = [10.0**power for power in range(-4, 5)]
GAMMAS = range(5, 101, 5)
BETAS = 10  # values of BETA to try


@dataclass(frozen=True)
class TIMOSettings(ChoosingSettings):
    """GAMMA is how much sentences that fit the images count. BETA rows of each class come from its
    sentences; 0: each once. ALPHA weighs the text. 0: validation images choose it. With SEARCH
    (TIMO-S) they choose all three.
    """

    AUGMENT_EPOCH: int = 10
    SEARCH: bool = False
    GAMMA: int | float = 50
    BETA: int = 0
    ALPHA: int | float = 0.0
    ranges = {"AUGMENT_EPOCH": (1, 1000), "BETA": (0, 100_000)}
    ranges |= dict.fromkeys(("GAMMA", "ALPHA"), (0, 1e6))


class GuidedGaussians(Head):
    """Weighted sentences of each class, and Gaussians of images and sentences (Li et al., 2024).

    Attributes:
        guided: (classes, joint), unit, the weighted sentences.
        W: (joint, classes); b: (classes,).
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.guided = nn.Buffer(torch.zeros(classes, width))
        self.W = nn.Buffer(torch.zeros(width, classes))
        self.b = nn.Buffer(torch.zeros(classes))
        self.alpha = nn.Buffer(torch.ones(()))

    def classify(self, image, text, scale):
        image = normalize(image)
        return self.alpha * image @ self.guided.T + (image @ self.W + self.b)


@TRAINER_REGISTRY.register()
class TIMO(FittedMethod):
    """Images weigh the sentences of their class, and these are images for its Gaussian (Li et al.,
    AAAI 2025).
    """

    Settings = TIMOSettings
    kind = "extra text"
    needs_sentences = True
    checkpoint_folder = "timo"
    tensors_by_class = ("guided", "W", "b")
    spec = FeatureSpec(SEVEN, reads_text=False, chosen={"ALPHA": "1.0"}, needs_all=True)

    @property
    def trials(self) -> int:
        alphas = 1 if self.settings.ALPHA else len(ALPHAS)
        return len(GAMMAS) + BETAS * alphas if self.settings.SEARCH else alphas

    @property
    def chosen_keys(self) -> list[str]:
        keys = [f"TRAINER.TIMO.{key}" for key in ("GAMMA", "BETA")]
        return super().chosen_keys + (keys if self.settings.SEARCH else [])

    def build_head(self, classes, width, rows):
        return GuidedGaussians(classes, width)

    @cached_property
    def sentence_features(self) -> Tensor:
        """(classes, P, joint), unit: the templates and the first sentences, as many as all classes
        have.
        """
        texts = [
            [*(template.replace("{}", name) for template in self.templates), *sentences]
            for name, sentences in zip(self.class_names, self.class_sentences(), strict=True)
        ]
        fewest = min(map(len, texts))
        rows = [[text] for of_class in texts for text in of_class[:fewest]]
        features = normalize(mean_text_features(self.model.frozen, rows))
        return features.unflatten(0, (-1, fewest))

    def start(self, support: Support) -> None:
        """Scores (classes, P) of the sentences by the images; the head of these settings."""
        means = normalize(support.views.mean(dim=0))
        classes = len(self.class_names)
        sums = torch.zeros(classes, means.shape[1]).to(means)
        self.prototypes = normalize(sums.index_add_(0, support.labels, means))
        self.scores = torch.einsum("cd,cpd->cp", self.prototypes, self.sentence_features)
        sentences = self.scores.shape[1]
        if 2 * sentences < self.settings.BETA:
            fault = f"TRAINER.TIMO.BETA is {self.settings.BETA}, for {sentences} sentences a class"
            raise UsageError(fault, f"give at most {2 * sentences}, or 0")
        self.set_text(self.settings.GAMMA)
        self.rows = normalize(support.rows).double()
        self.row_labels = support.row_labels
        self.set_gaussians(self.settings.BETA or sentences)
        self.head.alpha.fill_(self.settings.ALPHA or 1)

    def set_text(self, gamma: float) -> None:
        """The text of each class: its sentences by their scores, whose vector is made unit."""
        weights = (gamma * normalize(self.scores)).softmax(dim=1)
        self.head.guided.data = normalize((weights[..., None] * self.sentence_features).sum(dim=1))

    def set_gaussians(self, beta: int) -> None:
        """W and b, in double precision, from all views and `beta` rows of sentences a class: times
        their scores, the best first, all of them twice.
        """
        sentences = (self.scores[..., None] * self.sentence_features).double()
        order = self.scores.argsort(dim=1, descending=True, stable=True).repeat(1, 2)[:, :beta]
        ours = sentences.take_along_dim(order[..., None], dim=1)
        rows = torch.cat([ours.flatten(0, 1), self.rows])
        classes = len(ours)
        labels = torch.arange(classes, device=rows.device).repeat_interleave(ours.shape[1])
        labels = torch.cat([labels, self.row_labels])
        counts = labels.bincount(minlength=classes)
        means = torch.zeros(classes, rows.shape[1]).to(rows).index_add_(0, labels, rows)
        means = means / counts[:, None]
        precision = shrunk_inverse((rows - means[labels]).T.cov(), len(rows))
        weight = precision @ means.T
        self.head.W.data = weight.float()
        log_classes = torch.tensor(float(classes)).log()
        self.head.b.data = (-log_classes - (means * weight.T).sum(dim=1) / 2).float()

    def fit(self, support):
        """Choose GAMMA by the text alone, and then BETA with ALPHA; the first of the best."""
        settings = self.settings
        beta = settings.BETA or self.scores.shape[1]
        if settings.SEARCH:
            self.set_text(max(GAMMAS, key=self.correct_by_text))
            values = torch.linspace(1, 2 * self.scores.shape[1], BETAS).int().tolist()
            counts = {value: self.counts_of(value) for value in values}
            beta = max(counts, key=lambda value: max(counts[value].values()))
        elif settings.ALPHA:
            return
        found = self.counts_of(beta)
        alpha = max(found, key=lambda value: found[value])
        self.head.alpha.fill_(alpha)
        total = len(self.val[1])
        print(f"{found[alpha]} of {total} validation images with beta {beta}, alpha {alpha:g}")

    def correct_by_text(self, gamma: float) -> int:
        """The validation images that are right by the weighted sentences alone."""
        self.set_text(gamma)
        features, labels = self.val
        return int(((normalize(features) @ self.head.guided.T).argmax(dim=1) == labels).sum())

    def counts_of(self, beta: int) -> dict[float, int]:
        """The validation images that are right with this BETA, by ALPHA; the head has this BETA."""
        self.set_gaussians(beta)
        counts = {}
        for alpha in [self.settings.ALPHA] if self.settings.ALPHA else ALPHAS:
            self.head.alpha.fill_(alpha)
            counts[alpha] = self.correct()
        return counts
