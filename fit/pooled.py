"""Candidates that learn from images without labels, too: a graph over these images gives them
labels, or a mixture of Gaussians has an image of each class to start from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.base.neighbours import affinity, matrix, nearest, normalised, propagated, sparse
from trainers.base.prompted import normalize
from trainers.base.together import SCALE, Task
from trainers.transclip import SMOOTH, Mixture, TransCLIPSettings

NEAREST = 5  # images that an image is joined to
ALPHA = 0.7  # how much of a label goes on to the neighbours
SHRINK = 0.3  # of the mean variance, which is added to that of each direction
OF_SUPPORT = 0.2  # the weight of labelled images in the mixture


class Neighbourhood:
    """Images without labels, each joined to those that are most similar to it, by features of which
    each direction has about the same variance.

    Args:
        features: (images, width).
    """

    def __init__(self, features: Tensor):
        unit = normalize(features)
        self.mean = unit.mean(dim=0)
        centred = (unit - self.mean).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        added = SHRINK * values.mean().clamp(min=torch.finfo(torch.float32).tiny)
        self.whitening = (vectors * (values.clamp(min=0) + added).rsqrt()).float()
        self.images = self.whitened(features)
        self.graph = affinity(self.images, self.images, NEAREST)

    def whitened(self, features: Tensor) -> Tensor:
        """(images, width), of unit length."""
        return normalize((normalize(features) - self.mean) @ self.whitening)

    def labels(self, features: Tensor, labels: Tensor, classes: int) -> Tensor:
        """(images,): the label that reaches each image over the graph, from labelled images with
        these features (labelled, width) and labels (labelled,).
        """
        known = len(labels)
        similar, places = nearest(self.whitened(features), self.images, NEAREST)
        nodes = known + len(self.images)
        of_known = sparse(similar, places + known, nodes)
        of_images = self.graph.coalesce()
        start, end = torch.cat([of_known.indices(), of_images.indices() + known], dim=1)
        values = torch.cat([of_known.values(), of_images.values()]).clamp(min=0).double()
        half = matrix(torch.stack([start, end]), values, (nodes, nodes))
        targets = F.one_hot(labels, classes).double()
        targets = F.pad(targets, (0, 0, 0, len(self.images)))
        return propagated(normalised(half), targets, ALPHA)[known:].argmax(dim=1)


def mixture(
    features: Tensor, seen: tuple[Tensor, Tensor], texts: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """The weights (classes, joint) and biases (classes,) of the linear classifier of unit features
    that TransCLIP's mixture is for a single image: it has no neighbours.

    Args:
        features: (images, joint), of unit length, without labels.
        seen: labelled ones, and their labels.
        texts: (classes, joint), of unit length.
        weight: of the texts.
    """
    task = Task.of(features, texts, support=seen)
    found = Mixture(task, TransCLIPSettings(SUPPORT=True, LAMBDA=weight))
    found.rounds(OF_SUPPORT)
    of_means = found.means / found.variance
    bias = -(of_means * found.means).sum(dim=1) / 2
    return weight * SCALE * texts + of_means / SMOOTH, bias / SMOOTH
