"""A fit with the verbs of scikit-learn: `Classifier(...).fit(paths, labels).predict(paths)`."""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from clip import is_known, weights_sha256
from common.errors import UsageError, one_line
from common.names import as_class_name
from datasets.base import missing_files
from inference.artefact import EXPORT_CONFIG_FILE
from inference.bank import Bank, is_bank
from inference.images import image_of
from inference.load import load
from inference.options import LoadOptions

from .choose import Estimate
from .command import with_checksums
from .fit import fit
from .matrix import fit_matrix
from .options import FitOptions, FitRequest
from .read_images import Photo, find
from .record import FILE, PAGE, contents_of, images_of, options_of, record_of, write_contents
from .report import leaderboard

AT_A_TIME = 1000  # images that are in memory for a prediction


@dataclass(eq=False, repr=False)  # whose __init__ has the arguments, as scikit-learn asks for
class Classifier(ClassifierMixin, BaseEstimator):
    """The best classifier for labelled images: zero-shot CLIP, heads, ensembles and, while the
    minutes last, trained prompts are compared on images that they have not learned from.

    X has images: paths, PIL images, contents of files, or arrays (H, W, 3) of bytes; a column
    of a Hugging Face `Dataset` has such images, and a table of pandas their paths. Without a
    backbone X is a matrix of features that were computed elsewhere, (images, width): heads that do
    not read class names are compared.

    Args:
        backbone: a name or a file of weights, or a list of them to choose among; None for
            matrices of features.
        minutes: for everything; 0 tries heads alone.
        groups: `auto` finds near-copies, which count once; `none` does not.
        prior: `folder` or `equal`, how frequent the classes are in new images.
        max_error: percent of the answers that may be wrong, for `unknown`; None for no promise.
        methods: to try besides zero-shot CLIP; empty for all.
        sentences: JSON file with sentences for each class.
        device: `cpu`, `cuda`, or empty for CUDA if there is a GPU.
        random_state: of the folds and of the training.
        verbose: whether progress is printed.
        coverage: of `predict_sets`: `marginal`, a share of all images, or `per-class`.
        max_ms: most milliseconds of the image tower for an image on this machine; None for any.

    Attributes:
        classes_: (classes,), the labels in the order of `predict_proba`.
        backbone_: the chosen backbone; empty for features.
        estimate_: of the accuracy on new images, with an interval of 95%; None if no image could be
            held out.
        leaderboard_: a data frame with the accuracy of each candidate on held-out images.
        report_: the page about the fit, as HTML; empty for features.
        notes_: which images were left out, and other remarks, for people.

    Example:
        >>> model = Classifier(backbone="small").fit(paths, labels)
        >>> model.predict(["a.jpg"]), model.estimate_.accuracy
    """

    backbone: str | Sequence[str] | None = "ViT-B/16"
    minutes: float = FitOptions.minutes
    groups: str = FitOptions.groups
    prior: str = FitOptions.prior
    max_error: float | None = FitOptions.max_error
    methods: str | Sequence[str] = FitOptions.methods
    sentences: str | PathLike | None = None
    device: str = ""
    random_state: int = FitOptions.seed
    verbose: bool = False
    coverage: str = FitOptions.coverage
    max_ms: float | None = FitOptions.max_ms
    _model: Any = field(init=False)  # a PromptedClassifier, or a MatrixModel

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Find the classifier.

        Args:
            X: images; or, without `y`, a folder of class folders, a CSV file, or a bank.
            y: (images,), their labels: texts, which CLIP reads, or numbers.

        Raises:
            ValueError: X and y have other lengths, or two labels are one class name.
            UsageError: fewer than two classes have an image that can be used.
        """
        if self.backbone is None:
            return self._fit_matrix(*self._matrix(X, y))
        with TemporaryDirectory() as place:
            photos, labels = photos_in_memory(X, y, Path(place), {})
            request = self._request(Path(place) / "model")
            self._fit(request, with_checksums(photos))
            self._take(contents_of(request.to), labels)
        return self

    def partial_fit(self, X: Any, y: ArrayLike | None = None, classes: Any = None) -> Self:
        """Fit all images, these and those of the fit so far, also of new classes. The features of
        earlier images are kept on the disk.

        Args:
            X, y: as for `fit`; without an earlier fit, this is `fit`.
            classes: not used; scikit-learn's form.

        Raises:
            ValueError, UsageError: as for `fit`; or an image of the earlier fit is gone from its
                path and from the disk.
        """
        if not hasattr(self, "classes_"):
            return self.fit(X, y)
        if self.backbone is None:
            X, y = self._matrix(X, y, reset=False)
            rows, labels = self._rows
            return self._fit_matrix(np.concatenate([rows, X]), np.concatenate([labels, y]))
        if json.loads(self._files[FILE])["request"].get("sentences") and not self.sentences:
            fault = "the fit read sentences, which its folder does not hold"
            raise UsageError(fault, "give Classifier the same sentences")
        with TemporaryDirectory() as place:
            added, labels = photos_in_memory(X, y, Path(place), self._labels)
            request = self._request(Path(place) / "model")
            if missing_files(photo.path for photo in self._learned):
                request = replace(request, minutes=0.0)  # trainings read the images themselves
            self._fit(request, [*self._learned, *with_checksums(added)], self._learned)
            self._take(contents_of(request.to), labels)
        return self

    def _matrix(self, X: Any, y: Any, reset: bool = True) -> Any:
        """Features (rows, width) and their labels (rows,), as scikit-learn checks them."""
        if y is not None:  # validate_data says what then is missing
            check_labels(y)
        return validate_data(self, X, y, dtype=np.float32, reset=reset)

    def _fit_matrix(self, X: Any, y: Any) -> Self:
        """Fit features."""
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y has {len(classes)} class: a classifier needs two")
        with nullcontext() if self.verbose else redirect_stdout(io.StringIO()):
            result, model = fit_matrix(self._request(Path("features")), X, labels)
        self._describe(result.to_json(), "")
        self.backbone_ = ""
        self._rows = X, y
        self._model = model
        self._labels = dict(zip(model.class_names, classes.tolist(), strict=True))
        self.classes_ = classes
        self._columns = np.arange(len(classes))
        return self

    def _request(self, folder: Path) -> FitRequest:
        """The fit into this folder."""
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31)
        options: dict[str, Any] = {
            one.name: getattr(self, one.name, None) for one in fields(FitOptions)
        }
        methods = [self.methods] if isinstance(self.methods, str) else self.methods
        options |= {"methods": tuple(methods), "seed": int(seed)}
        return FitRequest(
            images=Path("images"),
            to=folder,
            backbones=tuple(self._backbones()),
            device=self.device,
            sentences=Path(self.sentences) if self.sentences else None,
            **options,
        )

    def _backbones(self) -> list[str]:
        """All that are named."""
        named = "" if self.backbone is None else self.backbone
        names = [named] if isinstance(named, str) else [*named]
        if not names:
            raise ValueError("backbone is an empty list: name one")
        return names

    def _fit(self, request: FitRequest, photos: list[Photo], known: Sequence[Photo] = ()) -> None:
        """Fit into the folder of the request; the known images must be readable."""
        with nullcontext() if self.verbose else redirect_stdout(io.StringIO()):
            fit(request, photos, record_of(request, photos), known)

    def _take(self, files: dict[str, bytes], labels: dict[str, Any]) -> None:
        """Take the files of a fit, which are the model."""
        self._files = files
        self._labels = labels
        # That which the fit has chosen; the first if it has chosen another one
        names = self._backbones()
        chosen = json.loads(files[EXPORT_CONFIG_FILE]).get("backbone_sha256")
        same = (name for name in names[1:] if weights_sha256(name) == chosen)
        self.backbone_ = next(same, names[0])
        with TemporaryDirectory() as folder:
            write_contents(Path(folder), files)
            options = LoadOptions(backbone=self.backbone_, device=self.device)
            self._model = load(folder, options)
        of_columns = np.array([labels[name] for name in self._model.class_names])
        self.classes_, self._columns = np.unique(of_columns, return_index=True)
        self._describe(json.loads(files[FILE]), files[PAGE].decode())

    def _describe(self, record: dict[str, Any], page: str) -> None:
        """Take what was found."""
        self._learned = images_of(record)
        estimate = record["estimate"]
        self.estimate_ = Estimate(**estimate) if estimate else None
        self.leaderboard_ = leaderboard(record["candidates"])
        self.notes_ = [*record["damaged"].values(), *record["notes"]]
        self.report_ = page

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
        try:
            answers[predictions.unknown.numpy()] = unknown
        except UsageError as error:
            remedy = "give max_error, such as Classifier(max_error=5), or a larger one"
            raise UsageError("the classifier promises no error", remedy) from error
        return answers

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """(images, classes): calibrated probabilities, in the order of `classes_`."""
        return self._predictions(X).probabilities.double().numpy()[:, self._columns]

    def predict_sets(self, X: Any, coverage: float = 0.9) -> list[list[Any]]:
        """Of each image the labels among which is the right one for `coverage` of the images."""
        sets = self._predictions(X).sets(coverage)
        return [[self._labels[name] for name, _ in pairs] for pairs in sets]

    def _predictions(self, X: Any) -> Any:
        check_is_fitted(self)
        if self.backbone is None:
            return self._model.predict(validate_data(self, X, dtype=np.float32, reset=False))
        if isinstance(X, str | PathLike) and is_bank(Path(X)):
            return Bank(Path(X)).predictions(self._model)
        check_list(X)
        images = map(image_of, column_of(X))  # which may be read only now
        found = []
        while part := list(islice(images, AT_A_TIME)):
            found.append(self._model.predict(part))
        return self._model.predict([]).joined(found)

    def save(self, folder: str | PathLike) -> None:
        """Write the files of the fit to a new folder, which is a MODEL of all commands."""
        check_is_fitted(self)
        if self.backbone is None:
            raise UsageError("a classifier of features is not a MODEL of images", "pickle it")
        target = Path(folder)
        try:
            target.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"cannot make {target} ({error})", "choose a new folder") from error
        write_contents(target, self._files)

    @classmethod
    def load(cls, folder: str | PathLike, **options: Any) -> "Classifier":
        """The classifier of a folder that `save` or `tools/fit.py` has written.

        Args:
            options: as for the class, by default those of the fit. Of `device` and `sentences`
                the default is that of the class, and of `backbone` if the fit's is a file.
                Labels are texts.
        """
        for name in (FILE, PAGE):
            if not Path(folder, name).is_file():
                raise UsageError(f"{folder} has no {name}", "give the folder of a fit")
        files = contents_of(Path(folder))
        try:
            record = json.loads(files[FILE])
            known = options_of(record, folder)
            backbone = json.loads(files[EXPORT_CONFIG_FILE])["backbone"]
            if is_known(backbone):
                known["backbone"] = backbone
            model = cls(**known | options)
            model._take(files, {name: name for name in record["names"]})
        except UsageError:
            raise
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            fault = f"{FILE} of {folder} is damaged ({one_line(error)})"
            raise UsageError(fault, "restore it, or fit again") from error
        return model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.backbone is None
        tags.input_tags.string = self.backbone is not None
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.backbone is None:
            return state
        # The model of images is in the files
        return {key: value for key, value in state.items() if key != "_model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_files" in state:
            self._take(state["_files"], state["_labels"])


def check_list(X: Any) -> None:
    """Raise UsageError for a single image in place of a list."""
    is_one = isinstance(X, str | PathLike | bytes | Mapping | Image.Image)
    is_pixels = isinstance(X, np.ndarray) and X.ndim == 3
    is_iterable = hasattr(X, "__iter__") or hasattr(X, "__getitem__")
    if is_one or is_pixels or not is_iterable:
        raise UsageError(f"X is {type(X).__name__}, and no list of images", "give a list: [X]")


def column_of(X: Any) -> Any:
    """The images: of a table with several columns those of its column `path`."""
    if not isinstance(X, pd.DataFrame):
        return X
    if len(X.columns) > 1 and "path" not in X.columns:
        raise UsageError("X is a table without a column path", "give a column: X['file']")
    return X["path"] if "path" in X.columns else X.iloc[:, 0]


def check_labels(y: ArrayLike) -> None:
    """Raise ValueError for a missing label, and for numbers beside texts. Beside texts,
    `np.asarray` would make NaN or a number one.
    """
    labels = np.asarray(y, dtype=object).ravel()
    missing = np.flatnonzero(pd.isna(labels))
    if len(missing):
        raise ValueError(f"image {missing[0]} of X has no label in y: leave it out")
    if len({isinstance(label, str) for label in labels}) > 1:
        raise ValueError("y has texts and numbers: give one kind of label")


def class_names(y: ArrayLike, known: dict[str, Any]) -> dict[str, Any]:
    """The labels by the names of their classes, as CLIP reads them; `known` ones among them."""
    labels = dict(known)
    for label in np.unique(np.asarray(y)).tolist():
        name = as_class_name(str(label))
        if labels.get(name, label) != label:
            raise ValueError(f"the labels {labels[name]!r} and {label!r} are one class name")
        labels[name] = label
    return labels


def photos_in_memory(
    X: Any, y: ArrayLike | None, folder: Path, known: dict[str, Any]
) -> tuple[list[Photo], dict[str, Any]]:
    """Labelled images, and their labels by the names of their classes; images that are in memory
    are written to the folder.
    """
    if y is None:
        if not isinstance(X, str | PathLike):
            remedy = "give the label of each image, or a folder"
            raise UsageError(f"X is {type(X).__name__}, and there is no y", remedy)
        photos = find(Path(X))
        return photos, class_names([photo.label for photo in photos], known)
    check_list(X)
    X = column_of(X)
    images = X if hasattr(X, "__len__") else list(X)
    values = column_or_1d(np.asarray(y)).tolist()
    check_labels(y)
    if len(images) != len(values):
        raise ValueError(f"X has {len(images)} images, and y has {len(values)} labels")
    labels = class_names(values, known)
    names = dict(zip(labels.values(), labels, strict=True))
    photos = [
        Photo(path_of(image, folder / f"{number:08}.png"), names[values[number]])
        for number, image in enumerate(images)
    ]
    return sorted(photos, key=lambda photo: (photo.label, photo.path)), labels


def path_of(image: Any, file: Path) -> str:
    """The path of an image; one that is in memory is written to the file."""
    source = image_of(image)
    if isinstance(source, str | PathLike):
        if not Path(source).is_file():
            raise UsageError(f"there is no image {str(source)!r}", "check its path")
        return str(source)
    pixels = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
    pixels.convert("RGB").save(file)
    return str(file)
