"""The most probable classes of image files by some models."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from threading import Lock

import torch

from .images import read_batch
from .models import Model
from .predict import Row

FEWEST = 8  # images of one call: each has some cost of its own
MANY = 5000  # class names whose text features take long enough to say so


class Predictor:
    """The most probable classes of the images in some files: their rows, the faults of the others, and how many
    could be read.

    Args:
        models: a row for each.
        names: class names instead of the models' own, if there are any.
        k: classes in a row.
    """

    def __init__(self, models: Sequence[Model], names: Sequence[str], k: int):
        self.models, self.names, self.k = models, names or None, k
        self.on_gpu = any(model.classifier.device.type == "cuda" for model in models)
        self.turn: AbstractContextManager = Lock() if self.on_gpu else nullcontext()
        for model in models:  # text features before the threads, which would each compute them
            if (count := len(self.names or model.classifier.class_names)) > MANY:
                print(f"{model.name}: computing the text features of {count:,} class names, which takes a while")
            model.classifier.check_logits(self.names)

    def batch(self, size: int, files: int) -> int:
        """The images of one call: on a CPU, the threads together have `size` at a time, and each an equal share."""
        return size if self.on_gpu else max(FEWEST, math.ceil(min(size, files) / torch.get_num_threads()))

    def __call__(self, files: Sequence[Path]) -> tuple[list[Row], list[str], int]:
        good, batches, errors = read_batch(files, [model.classifier for model in self.models])
        rows: list[list[Row]] = [[] for _ in good]
        for (name, classifier), inputs in zip(self.models, batches, strict=bool(good)):
            classes = self.names or classifier.class_names
            with self.turn:
                top = classifier.probabilities(inputs, self.names).topk(min(self.k, len(classes)))
            for number, pairs in enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True)):
                best = [(classes[index], value) for index, value in zip(*pairs, strict=True)]
                rows[number].append((str(good[number]), name, best))
        return list(chain(*rows)), errors, len(good)
