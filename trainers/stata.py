from dataclasses import dataclass

import torch
from dassl.engine import TRAINER_REGISTRY

from .base.prompted import normalize
from .base.together import OverSettings, TogetherMethod, log_of, spread, squared_distances
from .transclip import affinity

SMOOTH = 50.0  # divides the evidence of a z step
ROUNDS = 10
UPDATES = 5  # of a z step


@dataclass(frozen=True)
class StatASettings(OverSettings):
    """ALPHA is how many images of a class weigh as much as its text; SOFT_BETA counts them by their
    probabilities. LAMBDA_LAPLACIAN weighs the graph of N_NEIGHBORS nearest images.
    """

    ALPHA: int | float = 1.0
    SOFT_BETA: bool = False
    LAMBDA_LAPLACIAN: int | float = 1.0
    N_NEIGHBORS: int = 3
    ranges = {"N_NEIGHBORS": (1, 1000), "ALPHA": (0, 1e6), "LAMBDA_LAPLACIAN": (0, 1e6)}


@TRAINER_REGISTRY.register()
class StatA(TogetherMethod):
    """TransCLIP with a variance for each class; classes that are hardly seen stay at their texts
    (Zanella et al., CVPR 2025).
    """

    Settings = StatASettings

    @property
    def least_images(self):
        return self.settings.N_NEIGHBORS + 1

    def predict_task(self, images):
        return log_of(Anchored(images, self.settings).rounds())


class Anchored:
    """The assignments z (images, classes), the means (classes, joint) and the variances (classes,
    joint).
    """

    def __init__(self, images, settings):
        self.x = images.features
        self.texts = images.texts
        self.settings = settings
        graph = affinity(self.x, self.x, settings.N_NEIGHBORS)
        self.graph = (graph + graph.T).coalesce()
        self.prior = images.prior.clamp(min=torch.finfo(self.x.dtype).tiny).log()
        self.z = images.prior
        self.means = self.texts
        # That of all classes at the start: (joint,)
        of_all = spread(self.x, self.z, self.texts, of_all=True)[0] / len(self.x)
        self.start = of_all.to(self.x)
        self.variances = self.start.expand_as(self.texts)
        self.shares = None

    def rounds(self):
        for _ in range(ROUNDS):
            self.assign()
            self.fit()
        self.assign()
        return self.z

    def assign(self):
        """The z step."""
        s = self.settings
        distances = squared_distances(self.x, self.means, self.variances)
        evidence = -(distances + self.variances.log().sum(dim=1)) / 2
        weight = s.LAMBDA_LAPLACIAN * SMOOTH / (2 * s.N_NEIGHBORS)
        for _ in range(UPDATES):
            total = evidence + weight * (self.graph @ self.z)
            self.z = (self.prior + total / SMOOTH).softmax(dim=1)

    def fit(self):
        """The means and variances, held to the texts in proportion to how little a class is
        seen.
        """
        z = self.z
        sums = z.sum(dim=0).clamp(min=torch.finfo(z.dtype).tiny)[:, None]
        counts = z.argmax(dim=1).bincount(minlength=z.shape[1]).to(z)
        if self.settings.SOFT_BETA:
            counts = z.sum(dim=0)
        share = (counts / (self.settings.ALPHA + counts).clamp(min=1e-12))[:, None]
        seen = normalize(z.T @ self.x / sums)
        self.means = normalize(share * seen + (1 - share) * self.texts)
        around = (spread(self.x, z, self.means) / sums.double()).to(z)
        apart = (self.texts - self.means).square()
        self.variances = share * around + (1 - share) * (self.start + apart)
        self.shares = share[:, 0]
