"""The most probable classes of image files by some models."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock

import torch

from .images import read_batch
from .models import Model

FEWEST = 8  # images of one call: each has some cost of its own
MANY = 5000  # class names whose text features take long enough to say so
Row = tuple[str, str, list[tuple[str, float]]]  # image, model, (class, probability)


class Predictor:
    """The most probable classes of the images in some files: their rows, the faults of the others, and how many
    could be read.

    Args:
        models: a row for each.
        names: class names in place of the models' own, if there are any.
        k: classes in a row.
    """

    def __init__(self, models: Sequence[Model], names: Sequence[str], k: int):
        self.models, self.names, self.k = models, names or None, k
        self.on_gpu = any(model.classifier.device.type == "cuda" for model in models)
        self.turn: AbstractContextManager = Lock() if self.on_gpu else nullcontext()
        for model in models:  # text features before the threads, which would each compute them
            if (count := len(self.names or model.classifier.class_names)) > MANY:
                print(f"{model.name}: computing the text features of {count:,} class names, which takes a while")
            height, width = model.classifier.cfg.INPUT.SIZE
            model.classifier.logits(torch.zeros(1, 3, height, width), self.names)

    def batch(self, size: int, files: int) -> int:
        """The images of one call: on a CPU, the threads together have `size` at a time, and each an equal share."""
        return size if self.on_gpu else max(FEWEST, math.ceil(min(size, files) / torch.get_num_threads()))

    def __call__(self, files: Sequence[Path]) -> tuple[list[Row], list[str], int]:
        batch, tops = read_batch(files, [model.classifier for model in self.models]), []
        for model, inputs in zip(self.models, batch.inputs, strict=bool(batch.files)):
            classes = self.names or model.classifier.class_names
            with self.turn:
                top = model.classifier.probabilities(inputs, self.names).topk(min(self.k, len(classes)))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            tops.append([[(classes[index], value) for index, value in zip(*pair, strict=True)] for pair in pairs])
        named = [(model.name, rows) for model, rows in zip(self.models, tops, strict=bool(batch.files))]
        rows = [(str(file), name, rows[number]) for number, file in enumerate(batch.files) for name, rows in named]
        return rows, batch.errors, len(batch.files)
