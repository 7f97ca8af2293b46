"""predictions.npz: what a test predicted for each image. docs/predictions.md has its schema."""

import io
import math
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy

from common.errors import UsageError
from common.files import replacing
from common.results import MEASURES, digest_of_rows, read_results, test_record

from . import metrics
from .results import checked_summary

PREDICTIONS_FILE = "predictions.npz"
TOP = 5
LARGEST = 1 << 30  # bytes of the logits
LARGEST_READ = 256 << 20  # bytes of all other arrays: a million images with paths of 60 letters
# The columns, a row for each image: type and number of dimensions.
COLUMNS = {
    "label": ("i", 1),
    "classes": ("i", 2),
    "probabilities": ("f", 2),
    "log_probability": ("f", 1),
}
COLUMNS |= {"brier": ("f", 1)}
RANGES = (
    ("probabilities", 0, 1),
    ("log_probability", -math.inf, 1e-6),
    ("brier", -1e-6, MEASURES["brier"].most),
)
WORDS = {
    "image": ("U", 1),
    "class_names": ("U", 1),
    "dataset": ("U", 0),
    "split": ("U", 0),
    "images_sha256": ("U", 0),
}

Predictions = dict[str, np.ndarray]


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
        self.reset()

    def reset(self) -> None:
        self.evaluator.reset()
        self.batches: list[Predictions] = []
        self.results: dict[str, float] = {}

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
    def predictions(self) -> Predictions:
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
        from .record import note_test  # takes seconds, and readers do without it

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


def predictions_of(logits: Any, labels: Any) -> Predictions:
    """The columns of a batch, from logits (batch, classes) and labels (batch,).

    The first class is that of `argmax`, on which accuracy counts, also where several have the
    largest logit.
    """
    log_p = logits.detach().double().log_softmax(dim=1)
    first = logits.argmax(dim=1, keepdim=True)
    classes = logits.scatter(1, first, math.inf).topk(min(TOP, logits.shape[1]), dim=1).indices
    of_label = log_p.gather(1, labels[:, None].to(log_p.device)).squeeze(1)
    p = log_p.exp()
    columns = {
        "label": labels.int(),
        "classes": classes.int(),
        "probabilities": p.gather(1, classes).float(),
        "log_probability": of_label.float(),
        "brier": (p.square().sum(dim=1) - 2 * of_label.exp() + 1).float(),
    }
    return {key: column.cpu().numpy() for key, column in columns.items()}


def check_logits(images: int, classes: int) -> None:
    """Raise UsageError if TEST.SAVE_LOGITS would make too large a file."""
    if 4 * images * classes > LARGEST:
        what = (
            f"TEST.SAVE_LOGITS would write {images:,} x {classes:,} logits, "
            f"{4 * images * classes / 1e9:.1f} GB"
        )
        raise UsageError(what, f"leave it False: at most {LARGEST / 1e9:.1f} GB are written")


def test_arrays(cfg: Any, trainer: Any) -> Predictions:
    """The arrays of predictions.npz for the last test of a trainer with a `Recorder`; empty if it
    made none.
    """
    from datasets import title  # here, as readers do without what these import
    from trainers.base.data_use import list_digest, relative_paths

    columns = trainer.evaluator.predictions
    if not columns or not trainer.evaluator.results:
        return {}
    split, items = tested_images(cfg, trainer)
    rows = {id(item): row for row, item in enumerate(images_of(trainer, split))}
    order = [rows[id(item)] for item in items]  # a method may read them in another one
    if len(columns["label"]) != len(order) or columns["label"][order].tolist() != [
        item.label for item in items
    ]:
        print(f"No {PREDICTIONS_FILE}: the test did not read each image once, in order")
        return {}
    return {key: column[order] for key, column in columns.items()} | {
        "image": np.array(relative_paths(items, cfg.DATASET.ROOT)),
        "class_names": np.array(
            [trainer.dm.lab2cname[label] for label in range(trainer.dm.num_classes)]
        ),
        "dataset": np.array(title(cfg)),
        "split": np.array(split),
        "images_sha256": np.array(list_digest(items, cfg.DATASET.ROOT)),
    }


def tested_images(cfg: Any, trainer: Any) -> tuple[str, list]:
    """The split of the last test, and its images: in the order of the dataset's list, also if a
    method has another.
    """
    split = trainer.test_split
    read_items = images_of(trainer, split)
    listed = images_of(trainer.dm, split)
    return split, listed if set(map(id, listed)) == set(map(id, read_items)) else read_items


def images_of(owner: Any, split: str) -> list:
    """The images of a split in the order in which a trainer, or its data manager, reads them."""
    return (owner.val_loader if split == "val" else owner.test_loader).dataset.data_source


def save(file: Path, predictions: Mapping[str, Any]) -> None:
    """Write arrays to an .npz file, completely or not at all. Equal arrays give equal bytes."""
    with replacing(file) as partial, zipfile.ZipFile(partial, "w") as archive:
        for key, values in predictions.items():
            entry = zipfile.ZipInfo(f"{key}.npy")  # dated 1980
            # They hardly shrink
            entry.compress_type = zipfile.ZIP_STORED if key == "logits" else zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as stream:
                npy.write_array(cast(Any, stream), np.asarray(values), allow_pickle=False)


def read(folder: Path) -> Predictions:
    """The predictions of a finished run, by the names of docs/predictions.md.

    Raises UsageError if there are none, the file is damaged, or it does not belong to the run's
    results.json.
    """
    file = folder / PREDICTIONS_FILE
    results = read_results(folder)
    if not file.is_file() or results is None:
        missing = "results.json" if results is None else PREDICTIONS_FILE
        raise UsageError(
            f"{folder} has no {missing}",
            "give the output folder of a finished run that tested",
            folder,
        )
    checked_summary(folder, results)  # checks what every run writes
    try:
        arrays = read_arrays(file)
        check(arrays)
    except (
        Exception
    ) as error:  # a damaged file makes zipfile, its decompressors and numpy fail in any way
        raise UsageError(
            f"{file} is damaged", "delete it and results.json, and start its run again", file
        ) from error
    accuracy = 100 * float(np.mean(arrays["classes"][:, 0] == arrays["label"]))
    tested = str(arrays["images_sha256"])
    recorded = (results["dataset"], results["n_test"], (test_record(results) or [tested])[0])
    if (
        recorded != (str(arrays["dataset"]), len(arrays["label"]), tested)
        or abs(accuracy - results["accuracy"]) > 1e-6
    ):
        raise UsageError(
            f"{file} is not of the run in results.json",
            "delete both, and start the run again",
            file,
        )
    return arrays


def read_arrays(file: Path) -> Predictions:
    """The arrays of a file without logits. Their sizes are checked before they are read, and their
    CRCs after it.
    """
    with zipfile.ZipFile(file) as archive:
        entries = {key: archive.getinfo(f"{key}.npy") for key in COLUMNS | WORDS}
        if sum(entry.file_size for entry in entries.values()) > LARGEST_READ:
            raise ValueError("the arrays are too large")
        contents = {key: io.BytesIO(archive.read(entry)) for key, entry in entries.items()}
    return {key: npy.read_array(content, allow_pickle=False) for key, content in contents.items()}


def check(arrays: Predictions) -> None:  # noqa: C901
    """Raise ValueError or KeyError for arrays that no test has written."""
    for key, (kind, dimensions) in (COLUMNS | WORDS).items():
        if arrays[key].dtype.kind != kind or arrays[key].ndim != dimensions:
            raise ValueError(f"{key} has another type or number of dimensions")
        if kind == "U" and (arrays[key].ravel().view(np.uint32) > sys.maxunicode).any():
            raise ValueError(f"{key} has letters beyond Unicode")
    number = len(arrays["label"])
    names = len(arrays["class_names"])
    if any(len(arrays[key]) != number for key in (*COLUMNS, "image")) or not number:
        raise ValueError("columns of different lengths")
    if arrays["classes"].shape != arrays["probabilities"].shape or not arrays["classes"].size:
        raise ValueError("not one probability for each class")
    for key, low, high in RANGES:
        if not ((arrays[key] >= low) & (arrays[key] <= high)).all():  # also true of NaN
            raise ValueError(f"{key} outside {low} to {high}")
    for key in ("label", "classes"):
        if not ((arrays[key] >= 0) & (arrays[key] < names)).all():
            raise ValueError(f"{key} has numbers of classes that do not exist")
    if digest_of_rows(rows_of(arrays)) != str(arrays["images_sha256"]):
        raise ValueError("other images, labels or class names than the SHA-256 is of")


def rows_of(arrays: Predictions) -> Iterator[tuple[str, int, str]]:
    """Path, label and class name of each image, one after another: a long name is in memory
    once.
    """
    names = arrays["class_names"].tolist()
    for path, label in zip(arrays["image"], arrays["label"], strict=True):
        yield str(path), int(label), names[label]
