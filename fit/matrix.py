"""A fit of features that were computed elsewhere: there are no images, and no names to read."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clip import without_texts
from inference.artefact import Description
from inference.calibrated import Calibration
from inference.classifier import PromptedClassifier
from inference.options import LoadOptions
from inference.predictions import Predictions
from trainers.base import TEMPLATE
from trainers.base.head import Head

from .candidates import CANDIDATES, VISION
from .decision import decide_among
from .fit import methods_of
from .heads import Heads
from .options import FitRequest
from .photos import Photos
from .read_images import Photo
from .result import Fit
from .trials import Backbone, Examples

SOURCE = "the features"
LARGEST = 1e15  # of a feature: squares are summed in fp32


def check_sizes(x: NDArray[np.float32]) -> None:
    """Raise ValueError for features (rows, width) whose lengths would be infinite."""
    if np.abs(x).max(initial=0) > LARGEST:
        raise ValueError(f"X has numbers over {LARGEST:g}: scale it")


def guessing(width: int, names: Sequence[str], device: str) -> PromptedClassifier:
    """A backbone with image features of this width, which nobody asks for, and without texts."""
    tower: Any = nn.Conv2d(3, 1, 1)  # which never runs
    tower.output_dim = width
    tower.image_size = 16
    image = {"SIZE": [16, 16], "TRANSFORMS": []}
    description = Description(
        VISION, {"PREC": "fp32"}, image, SOURCE, class_names=list(names), template=TEMPLATE
    )
    options = LoadOptions(backbone=SOURCE, device=device)
    clip = without_texts(tower, SOURCE)
    return PromptedClassifier(description, None, SOURCE, options, clip)


@dataclass(frozen=True, eq=False)
class MatrixModel:
    """A head on features."""

    head: Head
    class_names: Sequence[str]
    calibration: Calibration | None = None

    @torch.no_grad()
    def predict(self, x: NDArray[np.float32]) -> Predictions:
        """Predictions for features (rows, width)."""
        check_sizes(x)
        features = torch.from_numpy(x).to(next(iter(self.head.state_dict().values())))
        nothing = features[:0]  # it reads no names
        logits = self.head.classify(features, nothing, nothing)
        return Predictions(self.class_names, logits.float().cpu(), self.calibration, source=SOURCE)


def fit_matrix(
    request: FitRequest, x: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[Fit, MatrixModel]:
    """The best head for features.

    Args:
        x: (rows, width).
        labels: (rows,), from 0; each row is a group of its own.
    """
    check_sizes(x)
    names = [f"class {label}" for label in np.unique(labels)]
    heads = Heads(guessing(x.shape[1], names, request.device), request.seed)
    features = torch.from_numpy(x).to(heads.device)
    y = torch.from_numpy(labels).to(features.device)
    examples = Examples(features, y, np.arange(len(labels)), names)
    candidates = methods_of(request, CANDIDATES, heads, len(labels))
    _, decision = decide_among([Backbone("", heads, examples, candidates)], request)
    rows = [
        Photo(f"row {place}", names[label], sha256=sha256(row.tobytes()).hexdigest())
        for place, (label, row) in enumerate(zip(labels, x, strict=True))
    ]
    result = Fit(request, Photos(rows, list(names), {}, []), decision)
    # In fp64 an answer does not depend on the rows beside it
    head = heads.fit_sum(decision.chosen, examples.seen).head.double()
    return result, MatrixModel(head, names, result.calibration)
