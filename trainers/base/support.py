"""The features of training images, and batches of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .features import KeptOutput


@dataclass(frozen=True)
class Support:
    """The training images.

    Attributes:
        views: (views, images, joint), fp32, features that are not normalised.
        labels: (images,).
    """

    views: Tensor
    labels: Tensor

    @property
    def rows(self) -> Tensor:
        """(views * images, joint): all features of the first view, of the second, ..."""
        return self.views.flatten(0, 1)

    @property
    def row_labels(self) -> Tensor:
        """(views * images,)."""
        return self.labels.repeat(len(self.views))


class Batches:
    """Batches of features.

    Args:
        support: the training images.
        size: of a batch.
        steps: batches of an epoch.
        mixed: whether an epoch draws from the views of all images together. Else it has one view of each image.
    """

    def __init__(self, support: Support, size: int, steps: int, mixed: bool):
        self.support, self.size, self.steps, self.mixed = support, size, steps, mixed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        views, images = self.support.views.shape[:2]
        if self.mixed:
            order = torch.randperm(views * images)
        else:
            order = torch.randperm(images) + images * torch.randint(views, (images,))
        for rows in order[: self.steps * self.size].split(self.size):
            image = rows % images
            yield {"img": KeptOutput(self.support.views[rows // images, image]), "label": self.support.labels[image]}
