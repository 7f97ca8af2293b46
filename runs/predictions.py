"""The files that a run writes at its end besides its record: predictions.npz, the predictions of
its tests, and seen.npz, the images that it learns from, chooses on and is tested on.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UsageError
from common.names import title
from common.results import MEASURES
from inference.seen import NotedImages
from measures import metrics
from measures.predictions import (
    COLUMNS,
    LARGEST,
    PREDICTIONS_FILE,
    PredictionArrays,
    predictions_of,
    save,
)
from trainers.base.data_use import list_digest, relative_paths

from .results import images_of, note_test, tested_images

MOST_SEEN = 20_000  # training images, and test images


class Recorder:
    """The evaluator of a trainer, which keeps the predictions of a test and adds measures of them
    to its results.

    It calls `after_test` with the results of each test. Accuracies are in percent.
    """

    def __init__(
        self, evaluator: Any, keeps_logits: bool, after_test: Callable[[dict[str, float]], None]
    ):
        self.evaluator = evaluator
        self.keeps_logits = keeps_logits
        self.after_test = after_test
        self.batches: list[PredictionArrays] = []
        self.results: dict[str, float] = {}

    def reset(self) -> None:
        self.evaluator.reset()
        self.batches = []
        self.results = {}

    def process(self, logits: Any, labels: Any) -> None:
        """Add a batch: logits (batch, classes) and labels (batch,)."""
        self.evaluator.process(logits, labels)
        # For an evaluator of another project
        if not (hasattr(logits, "dim") and logits.dim() == 2):
            return
        self.batches.append(predictions_of(logits, labels))
        if self.keeps_logits:
            self.batches[-1]["logits"] = logits.float().cpu().numpy()

    @property
    def predictions(self) -> PredictionArrays:
        """The columns of all batches; none if there were no batches."""
        return {
            key: np.concatenate([batch[key] for batch in self.batches])
            for key in (self.batches or [{}])[0]
        }

    def evaluate(self) -> dict[str, float]:
        """The results of the evaluator and those of `metrics.of_predictions`, printed too."""
        self.results = self.evaluator.evaluate()
        columns = self.predictions
        measures = metrics.of_predictions(*(columns[key] for key in COLUMNS)) if columns else {}
        self.results.update(measures)
        for key, value in measures.items():
            name = key.removesuffix("_accuracy")  # parsers of logs look for the word
            print(f"* {name}: {value:{MEASURES[key].log_form}}{MEASURES[key].unit}")
        p = columns.get("probabilities", np.empty((0, 0)))
        if p.size and p.shape[1] > 1 and (p[:, 0] == p[:, -1]).all():
            print(
                "All classes are equally likely for every image: do the numbers of the backbone "
                "overflow?"
            )
        self.after_test(self.results)
        return self.results


class SavedPredictions:
    """Records each test of a run, and writes predictions.npz at its end: an observer
    (`run.wanted_observers`).
    """

    def __init__(self, spec: Any, trainer: Any):
        self.cfg = spec.cfg
        self.trainer = trainer
        keeps_logits = spec.cfg.TEST.SAVE_LOGITS or spec.cfg.TEST.CALIBRATE
        if keeps_logits:
            check_logits(len(trainer.test_loader.dataset), trainer.dm.num_classes)
        note = partial(note_test, spec.cfg, trainer)
        trainer.evaluate_by(lambda evaluator: Recorder(evaluator, keeps_logits, note))

    def finish(self) -> dict[str, Any]:
        if arrays := test_arrays(self.cfg, self.trainer):
            save(Path(self.cfg.OUTPUT_DIR, PREDICTIONS_FILE), arrays)
        return {}


def check_logits(images: int, classes: int) -> None:
    """Raise UsageError if TEST.SAVE_LOGITS would make too large a file."""
    if 4 * images * classes > LARGEST:
        fault = (
            f"TEST.SAVE_LOGITS would write {images:,} x {classes:,} logits, "
            f"{4 * images * classes / 1e9:.1f} GB"
        )
        raise UsageError(fault, f"leave it False: at most {LARGEST / 1e9:.1f} GB are written")


def test_arrays(cfg: Any, trainer: Any) -> PredictionArrays:
    """The arrays of predictions.npz for the last test of a trainer with a `Recorder`; empty if it
    made none.
    """
    columns = trainer.evaluator.predictions
    if not columns or not trainer.evaluator.results:
        return {}
    split, items = tested_images(cfg, trainer)
    order = order_of(items, images_of(trainer, split), columns["label"].tolist())
    if order is None:
        print(f"No {PREDICTIONS_FILE}: the test did not read each image once, in order")
        return {}
    arrays = {key: column[order] for key, column in columns.items()}
    arrays["image"] = np.array(relative_paths(items, cfg.DATASET.ROOT))
    labels = range(trainer.dm.num_classes)
    arrays["class_names"] = np.array([trainer.dm.lab2cname[label] for label in labels])
    arrays["dataset"] = np.array(title(cfg))
    arrays["split"] = np.array(split)
    arrays["images_sha256"] = np.array(list_digest(items, cfg.DATASET.ROOT))
    return arrays


def order_of(items: list, read: list, labels: list[int]) -> list[int] | None:
    """The rows of the images in the order in which they were read, with these labels; a method may
    have another order. None unless each was read once.
    """
    rows = {id(item): row for row, item in enumerate(read)}
    order = [rows[id(item)] for item in items]
    if len(labels) != len(order) or any(
        labels[row] != item.label for row, item in zip(order, items, strict=True)
    ):
        return None
    return order


class SeenByRun:
    """Notes the images of a run when it reads them, and writes seen.npz at its end: an observer
    (`run.wanted_observers`).
    """

    def __init__(self, spec: Any, trainer: Any):
        self.folder = Path(spec.cfg.OUTPUT_DIR)
        data = trainer.dm.dataset
        self.learned = data.train_x
        by_val = any(choice.split == "val" for choice in trainer.method.choices)
        self.chosen = data.val if by_val else []
        self.tested = data.test if len(data.test) <= MOST_SEEN else []
        self.noted = NotedImages(
            [*self.learned, *self.chosen], self.tested, spec.cfg.INPUT.MAX_PIXELS
        )
        for loader in (trainer.dm.train_loader_x, trainer.dm.val_loader, trainer.dm.test_loader):
            if loader is not None:
                loader.dataset.on_read = self.noted.note

    @staticmethod
    def is_wanted(spec: Any, trainer: Any) -> bool:
        return not spec.args.eval_only and len(trainer.dm.dataset.train_x) <= MOST_SEEN

    def finish(self) -> dict[str, Any]:
        seen = self.noted.seen(self.learned, "learned")
        seen += self.noted.seen(self.chosen, "chosen")
        seen += self.noted.seen(self.tested, "tested")
        seen.write(self.folder)
        return {}
