"""Candidates that learn from images without labels, too: a graph over these images gives them
labels, or a mixture of Gaussians has an image of each class to start from.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainers.base.neighbours import affinity, matrix, nearest, normalised, propagated, sparse
from trainers.base.prompted import normalize
from trainers.base.together import SCALE, Task
from trainers.transclip import SMOOTH, Mixture, TransCLIPSettings

NEAREST = 5  # images that an image is joined to
ALPHA = 0.7  # the share of a label that its neighbours get
SHRINK = 0.3  # of the mean variance, which is added to that of each direction
OF_SUPPORT = 0.2  # the weight of labelled images in the mixture
CLUSTERS = 2  # of each class
LEAST_OF_CLUSTER = 10  # images
CHANCE = 0.05  # that a cluster of images of known classes has no labelled image


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
        targets = F.one_hot(labels, classes).double()
        targets = F.pad(targets, (0, 0, 0, len(self.images)))
        graph = normalised(self.joined(features))
        return propagated(graph, targets, ALPHA)[len(labels) :].argmax(dim=1)

    def joined(self, features: Tensor) -> Tensor:
        """(nodes, nodes): the graph of labelled images with these features (labelled, width) and,
        after them, the images.
        """
        known = len(features)
        nodes = known + len(self.images)
        similar, places = nearest(self.whitened(features), self.images, NEAREST)
        of_known = sparse(similar, places + known, nodes)
        indices = torch.cat([of_known.indices(), self.graph.indices() + known], dim=1)
        values = torch.cat([of_known.values(), self.graph.values()]).clamp(min=0).double()
        return matrix(indices, values, (nodes, nodes))


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


def unexplained(
    labelled: NDArray[np.float32], images: NDArray[np.float32], classes: int, seed: int
) -> Iterator[list[int]]:
    """The places of the images of each cluster in which there is no labelled image, though there
    should be some, the largest cluster first; images near its centre first.

    Args:
        labelled, images: (labelled, width) and (images, width), by `Neighbourhood.whitened`.
    """
    from sklearn.cluster import KMeans

    means = KMeans(min(CLUSTERS * classes, len(images)), n_init=4, random_state=seed)
    means.fit(np.concatenate([labelled, images]))
    of_labelled, of_images = np.split(means.labels_, [len(labelled)])
    sizes = np.bincount(of_images)
    for cluster in np.argsort(-sizes, kind="stable").tolist():
        expected = sizes[cluster] * len(labelled) / len(images)
        if sizes[cluster] < LEAST_OF_CLUSTER or math.exp(-expected) > CHANCE:
            continue
        if cluster in of_labelled:
            continue
        places = np.flatnonzero(of_images == cluster)
        distances = np.linalg.norm(images[places] - means.cluster_centers_[cluster], axis=1)
        yield places[np.argsort(distances, kind="stable")].tolist()
