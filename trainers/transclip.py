from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from .base.prompted import normalize
from .base.together import (
    OverSettings,
    SupportSettings,
    TogetherMethod,
    log_of,
    spread,
    squared_distances,
)

CELLS = 2**26  # cosines that are in memory at a time: 256 MB
LEAST = 1e-12  # of a change of the scores, as a share of the largest: the end of the iterations


def nearest(rows: Tensor, columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest cosines of each row with the columns, or all, in falling order, and which
    columns these are; both (rows, count).

    Args:
        rows, columns: (rows, joint) and (columns, joint), of unit length.
    """
    size = max(1, CELLS // len(columns))
    count = min(count, len(columns))
    parts = [(part @ columns.T).topk(count) for part in rows.split(size)]
    values, places = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(places)


def sparse(values: Tensor, places: Tensor, columns: int) -> Tensor:
    """A sparse matrix (rows, columns) with `values` (rows, count) at the `places` of each row."""
    rows = torch.arange(len(values), device=values.device).repeat_interleave(values.shape[1])
    indices = torch.stack([rows, places.flatten()])
    return matrix(indices, values.flatten(), (len(values), columns))


def matrix(indices: Tensor, values: Tensor, size: Sequence[int]) -> Tensor:
    """A sparse matrix; equal indices are added up."""
    return torch.sparse_coo_tensor(indices, values, tuple(size), check_invariants=False).coalesce()


def affinity(rows: Tensor, columns: Tensor, count: int) -> Tensor:
    """A sparse matrix (rows, columns) with the cosines of each row with its `count` nearest
    columns, without the very nearest: an image itself.
    """
    values, places = nearest(rows, columns, count + 1)
    return sparse(values[:, 1:], places[:, 1:], len(columns))


def normalised(half: Tensor) -> Tensor:
    """The symmetric matrix (nodes, nodes) of a sparse graph and its transpose, divided by the
    square roots of the degrees of both nodes.
    """
    whole = (half + half.T).coalesce()
    degrees = torch.sparse.sum(whole, dim=1).to_dense()
    scale = degrees.masked_fill(degrees == 0, 1).rsqrt()
    start, end = whole.indices()
    return matrix(whole.indices(), scale[start] * whole.values() * scale[end], half.shape)


def propagated(graph: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """(nodes, classes), fp64: the solution of (1 - alpha graph) x = labels.

    The eigenvalues of the graph are at most 1, so that each iteration divides the error by alpha.

    Args:
        graph: (nodes, nodes), by `normalised`.
        labels: (nodes, classes), fp64; 0 for nodes without a label.
        alpha: the share of a label that its neighbours get; below 1.
    """
    unlabelled = ~labels.any(dim=1)
    scores = labels
    while True:
        following = labels + alpha * (graph @ scores)
        change = (following - scores).abs().max()
        scores = following
        if change <= LEAST * scores[unlabelled].abs().max():
            return scores


SMOOTH = 50.0  # divides the evidence of a z step
NEAREST = 3  # images that speak for an image
ROUNDS = 10
UPDATES = 5  # of a z step
FIRST = 8  # images that start a mean, if there are so many
GAMMAS = 0.002, 0.01, 0.02, 0.2  # weights of the support, of which validation images choose


@dataclass(frozen=True)
class TransCLIPSettings(SupportSettings, OverSettings):
    """LAMBDA is the weight of the texts; 0 means 1 or, with SUPPORT, 0.5. ALIGNED False
    mixes up the rows of the support and of the test, as the published code does.
    """

    LAMBDA: int | float = 0.0
    ALIGNED: bool = True
    ranges = {"LAMBDA": (0, 100)}


@TRAINER_REGISTRY.register()
class TransCLIP(TogetherMethod):
    """A mixture of Gaussians with one variance, a graph over the images, and the texts as prior
    (Zanella et al., NeurIPS 2024).
    """

    Settings = TransCLIPSettings
    least_images = NEAREST + 1

    def predict_task(self, images):
        mixture = Mixture(images, self.settings)
        if images.support is None:
            return log_of(mixture.rounds(0.0))
        val, val_labels = images.val
        _, near = nearest(val, images.features, 1)
        best = -1.0
        chosen = None
        for gamma in GAMMAS:  # each one starts from the one before
            z = mixture.rounds(gamma)
            correct = float((z[near[:, 0]].argmax(dim=1) == val_labels).float().mean())
            if correct > best:
                best = correct
                chosen = z
        return log_of(chosen)


class Mixture:
    """The assignments z (images, classes), the means and the variance.

    Attributes:
        means: (classes, joint), of unit length.
        variance: (joint,), one for all classes.
    """

    def __init__(self, images, settings):
        self.x = images.features
        count, width = self.x.shape
        classes = images.prior.shape[1]
        self.s = self.x[:0]  # the support
        self.y = self.x.new_zeros(0, classes)
        if images.support is not None:
            self.s, labels = images.support
            self.y = torch.nn.functional.one_hot(labels, classes).to(self.x)
        parts = [affinity(self.x, self.x, NEAREST)]
        if len(self.s):
            parts.append(affinity(self.s, self.x, NEAREST))
        self.rows = torch.cat(parts if settings.ALIGNED else parts[::-1]).coalesce()
        self.columns = self.rows.T.coalesce()
        weight = settings.LAMBDA or (0.5 if len(self.s) else 1.0)
        self.prior = weight * images.prior.clamp(min=torch.finfo(self.x.dtype).tiny).log()
        self.z = images.prior
        self.variance = self.x.new_full((width,), 1 / width)
        if len(self.s):
            self.means = normalize(self.y.T @ self.s)
        else:
            first = self.z.topk(min(FIRST, count), dim=0)
            self.means = normalize((first.values[..., None] * self.x[first.indices]).mean(dim=0))

    def rounds(self, gamma):
        """z after some rounds, with this weight of the support."""
        for _ in range(ROUNDS):
            self.assign()
            self.fit(gamma)
        self.assign()
        return self.z

    def assign(self):
        """The z step."""
        evidence = -squared_distances(self.x, self.means, self.variance) / 2
        for _ in range(UPDATES):
            known = torch.cat([self.z, self.y])
            graph = self.columns @ known + (self.rows @ self.z)[: len(self.x)]
            total = evidence + SMOOTH / (2 * NEAREST) * graph
            self.z = (self.prior + total / SMOOTH).softmax(dim=1)

    def fit(self, gamma):
        """The means, and then the variance."""
        support = SMOOTH * gamma / max(1, len(self.s))
        of_class = self.z.mean(dim=0) + support * self.y.sum(dim=0)
        sums = self.z.T @ self.x / len(self.x) + support * self.y.T @ self.s
        self.means = normalize(sums / of_class[:, None])
        total = spread(self.x, self.z, self.means, of_all=True)[0] / len(self.x)
        total = total + support * spread(self.s, self.y, self.means, of_all=True)[0]
        self.variance = (total / of_class.double().sum()).to(self.x)
