"""A fit with the verbs of scikit-learn: `Classifier(...).fit(paths, labels).predict(paths)`."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from common.errors import UsageError
from common.names import plain
from inference.models import load
from inference.options import LoadOptions

from .choice import Estimate
from .command import with_checksums
from .images import Photo, find
from .record import FILE, FORM, facts
from .request import PRIORS, FitRequest
from .story import fit

REPORT = "report.html"


class Classifier(ClassifierMixin, BaseEstimator):
    """The best classifier for labelled images: zero-shot CLIP, heads, ensembles and, while the
    minutes last, trained prompts are compared on images that they have not learned from.

    Images are paths, PIL images, contents of files, or arrays (H, W, 3) of bytes.

    Args:
        backbone: a name or a file of weights.
        minutes: for everything; 0 tries heads alone.
        groups: `auto` finds images of one scene, which count once; `none` does not.
        prior: `folder` or `equal`, how frequent the classes are in new images.
        max_error: percent of the answers that may be wrong, for `unknown`; None for no promise.
        methods: to try besides zero-shot CLIP; empty for all.
        sentences: JSON file with sentences for each class.
        device: `cpu`, `cuda`, or empty for CUDA if there is a GPU.
        random_state: of the folds and of the training.
        verbose: whether progress is printed.

    Attributes:
        classes_: (classes,), the labels in the order of `predict_proba`.
        estimate_: of the accuracy on new images, with an interval of 95%; None if no image could be
            held out.
        leaderboard_: a data frame with the accuracy of each candidate on held-out images.
        report_: the page about the fit, as HTML.

    Example:
        >>> model = Classifier(backbone="small").fit(paths, labels)
        >>> model.predict(["a.jpg"]), model.estimate_.accuracy
    """

    def __init__(  # noqa: PLR0913 - scikit-learn's form
        self,
        backbone: str = "ViT-B/16",
        minutes: float = 5.0,
        groups: str = "auto",
        prior: str = PRIORS[0],
        max_error: float | None = None,
        methods: Sequence[str] = (),
        sentences: str | PathLike | None = None,
        device: str = "",
        random_state: int = 1,
        verbose: bool = False,
    ):
        self.backbone = backbone
        self.minutes = minutes
        self.groups = groups
        self.prior = prior
        self.max_error = max_error
        self.methods = methods
        self.sentences = sentences
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Find the classifier.

        Args:
            X: images; or, without `y`, a folder of class folders or a CSV file.
            y: (images,), their labels: texts, which CLIP reads, or numbers.

        Raises:
            ValueError: X and y have other lengths, or two labels are one class name.
            UsageError: fewer than two classes have an image that can be used.
        """
        with TemporaryDirectory() as place:
            folder = Path(place)
            if y is None:
                photos = find(Path(X))
                labels = {photo.label: photo.label for photo in photos}
            else:
                labels = class_names(y)
                photos = photos_of(X, y, labels, folder)
            self._fit(photos, folder / "model")
            files = (folder / "model").iterdir()
            contents = {file.name: file.read_bytes() for file in files if file.is_file()}
        self._take(contents, labels)
        return self

    def _fit(self, photos: list[Photo], folder: Path) -> None:
        """Fit into a folder."""
        request = FitRequest(
            images=Path("images"),
            to=folder,
            backbone=self.backbone,
            device=self.device,
            sentences=Path(self.sentences) if self.sentences else None,
            minutes=self.minutes,
            max_error=self.max_error,
            groups=self.groups,
            prior=self.prior,
            methods=tuple(self.methods),
            seed=self.random_state,
        )
        photos = with_checksums(photos)
        record = {"form": FORM, "finished": False, "request": facts(request, photos)}
        with nullcontext() if self.verbose else redirect_stdout(io.StringIO()):
            fit(request, photos, record)

    def _take(self, files: dict[str, bytes], labels: dict[str, Any]) -> None:
        """Take the files of a fit: they are the model, also for pickle and `save`."""
        self._files = files
        self._labels = labels
        with self._folder() as folder:
            self._model = load(folder, LoadOptions(backbone=self.backbone, device=self.device))
        self.classes_ = np.array([labels[name] for name in self._model.class_names])
        record = json.loads(files[FILE])
        estimate = record["estimate"]
        self.estimate_ = Estimate(**estimate) if estimate else None
        self.leaderboard_ = leaderboard(record["candidates"])
        self.report_ = files[REPORT].decode()

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """A folder with the files of the fit."""
        with TemporaryDirectory() as place:
            self._write(Path(place))
            yield Path(place)

    def _write(self, folder: Path) -> None:
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def predict(self, X: Any, unknown: Any = None) -> NDArray[Any]:
        """(images,): the most probable label of each image.

        Args:
            X: images.
            unknown: if given, the answer for images of which the model is not sure enough
                (`max_error`).

        Raises:
            NotFittedError: `fit` was not called.
            UsageError: the model promises no error, or an image cannot be read.
        """
        predictions = self._predictions(X)
        answers = np.array([self._labels[name] for name in predictions.labels])
        if unknown is None:
            return answers
        answers = answers.astype(object)
        answers[predictions.unknown.numpy()] = unknown
        return answers

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """(images, classes): calibrated probabilities, in the order of `classes_`."""
        return self._predictions(X).probabilities.double().numpy()

    def predict_sets(self, X: Any, coverage: float = 0.9) -> list[list[Any]]:
        """The labels among which is the right one for `coverage` of the images, of each image; the
        most probable one first.
        """
        sets = self._predictions(X).sets(coverage)
        return [[self._labels[name] for name, _ in pairs] for pairs in sets]

    def _predictions(self, X: Any) -> Any:
        check_is_fitted(self)
        return self._model.predict([image_of(one) for one in X])

    def save(self, folder: str | PathLike) -> None:
        """Write the files of the fit to a new folder, which is a MODEL of all commands."""
        check_is_fitted(self)
        target = Path(folder)
        try:
            target.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"cannot make {target} ({error})", "choose a new folder") from error
        self._write(target)

    @classmethod
    def load(cls, folder: str | PathLike, **options: Any) -> "Classifier":
        """The classifier of a folder that `save` or `tools/fit.py` has written.

        Args:
            options: as for the class, such as the backbone. Labels are texts.
        """
        model = cls(**options)
        for name in (FILE, REPORT):
            if not Path(folder, name).is_file():
                raise UsageError(f"{folder} has no {name}", "give the folder of a fit")
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}
        names = json.loads(files[FILE])["names"]
        model._take(files, {name: name for name in names})
        return model

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_files" in state:
            self._take(state["_files"], state["_labels"])


def class_names(y: ArrayLike) -> dict[str, Any]:
    """The labels by the names of their classes, as CLIP reads them."""
    labels: dict[str, Any] = {}
    for label in np.unique(np.asarray(y)).tolist():
        name = " ".join(plain(str(label)).split())
        if name in labels:
            raise ValueError(f"the labels {labels[name]!r} and {label!r} are one class name")
        labels[name] = label
    return labels


def photos_of(X: Any, y: ArrayLike, labels: dict[str, Any], folder: Path) -> list[Photo]:
    """Labelled images; those that are in memory are written to the folder."""
    images = list(X)
    values = np.asarray(y).tolist()
    if len(images) != len(values):
        raise ValueError(f"X has {len(images)} images, and y has {len(values)} labels")
    names = {label: name for name, label in labels.items()}
    photos = []
    for number, (image, label) in enumerate(zip(images, values, strict=True)):
        source = image_of(image)
        if not isinstance(source, str | PathLike):
            path = folder / f"{number:08}.png"
            pixels = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
            pixels.convert("RGB").save(path)
            source = path
        elif not Path(source).is_file():
            raise UsageError(f"there is no image {str(source)!r}", "check its path")
        photos.append(Photo(str(source), names[label]))
    return sorted(photos, key=lambda photo: (photo.label, photo.path))


def image_of(image: Any) -> Any:
    """An image as a classifier reads it: an array (H, W, 3) of bytes becomes a PIL image."""
    if not isinstance(image, np.ndarray):
        return image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an array of type {image.dtype} and shape {image.shape} is no image")
    return Image.fromarray(image)


def leaderboard(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The candidates, the most accurate first; those that were left out have a fault."""
    columns = ["name", "accuracy", "low", "high", "seconds", "fault"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("accuracy", ascending=False, ignore_index=True)
