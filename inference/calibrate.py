"""Calibrations of models: fitted on held-out images, written, and what they change reported."""

import argparse
import io
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dassl.data.datasets import DATASET_REGISTRY, Datum

from common.arrays import read_arrays
from common.errors import UsageError, check_dataset_name
from common.files import RESULTS_FILE, check_regular
from common.names import plain, printable
from measures.predictions import LARGEST, PREDICTIONS_FILE, read_predictions
from trainers import methods, predicting

from .arguments import check_exists
from .bank import Bank, is_bank
from .calibrated import Calibration, calibration_in, write_calibration
from .calibrated_outputs import (
    COVERAGE,
    Outputs,
    check_test_images,
    count_shared,
    fit,
    of_sets,
    report,
)
from .calibration import checked
from .calibration_images import labelled_images, outputs_of, seen_of
from .classifier import PromptedClassifier
from .load import kind_of, load, model_file, run_configuration
from .options import LoadOptions
from .seen import ROLES, SeenImages

NOTHING = SeenImages.of([], [], [], ROLES[0])
MOST_NEAR = 0.05  # of the images: more near-copies of training images are not by chance
LOGITS = "logits"  # in predictions.npz


def calibrate_all(args: argparse.Namespace) -> None:
    """Fit the calibrations of the models of a command; UsageError if one of them has none."""
    folders = [folder for model in args.models for folder in models_in(model)]
    failed = 0
    for number, folder in enumerate(folders):
        if number:
            print()
        print(printable(folder))
        try:
            calibrate(folder, args)
        except (UsageError, OSError) as error:
            if len(folders) == 1:
                raise
            failed += 1
            print(printable(f"Not calibrated: {error}"))
    if failed:
        raise UsageError(f"{failed} of {len(folders)} models could not be calibrated", "see above")


def models_in(folder: Path) -> list[Path]:
    """The folder of one model, or of the runs below it; UsageError if none can be calibrated."""
    check_exists(folder)
    if kind_of(folder) in ("exported", "run"):
        return [folder]
    runs = sorted(file.parent for file in folder.rglob(RESULTS_FILE))
    own = [run for run in runs if kind_of(run) == "run" and is_tested_here(run)]
    if not own:
        raise UsageError(
            f"no finished run in {folder}", "give the output folder of a run, or of several", folder
        )
    return own


def is_tested_here(run: Path) -> bool:
    """Whether a run has its prompts itself, and is not of new classes alone; also if it is
    damaged.
    """
    try:
        cfg = run_configuration(run)
    except UsageError:
        return True  # `calibrate` says why
    if cfg.DATASET.SUBSAMPLE_CLASSES == "new":
        return False
    return not methods()[cfg.TRAINER.NAME].learns or any(run.glob("*/model*.pth.tar*"))


def calibrate(folder: Path, args: argparse.Namespace) -> None:
    """Fit the calibration of one model, write it, and print what it changes on the images of the
    run's test.
    """
    check_regular(folder, "folder")
    dataset = read_dataset(folder) if kind_of(folder) == "run" else None
    options = LoadOptions(device=args.device, backbone=args.backbone, calibration=False)
    if dataset:
        options = replace(options, class_names=tuple(names_of(dataset)))
    classifier = load(folder, options)
    seen = seen_images(folder, dataset, classifier.method, args.accept_unknown_images)
    images = new_images(folder, dataset, classifier, seen, args)
    outputs = outputs_of(classifier, images.items)
    fitted = fit(
        outputs,
        classifier.class_names,
        images.items,
        images.source,
        args.error and args.error / 100,
        kind=args.kind,
        test_images=images.tested,
        chosen_images=count(images.seen or NOTHING, "chosen", images.asked),
        unknown_images=images.seen is None,
    )
    before = None
    with suppress(UsageError):  # it is damaged
        before = calibration_in(folder)
    write_calibration(folder, fitted, model_file(folder, predicting()[classifier.method]))
    if images.seen is not None:
        earlier = images.seen.of_role(*set(ROLES).difference(["calibrated"]))
        (earlier + images.asked).write(folder)
    print(f"Fitted on {fitted}: temperature {fitted.temperature.temperature:.3f}")
    if before and before.sha256 != fitted.sha256:
        print(printable(f"This replaces the calibration on {before}"))
    if dataset is not None:
        print_changes(folder, dataset, classifier, fitted, outputs, args.by_class)


class NewImages(NamedTuple):
    """Labelled images that a model has not learned from.

    Attributes:
        source: where they are from.
        asked: what is kept of them.
        tested: how many of them are test images.
        seen: what the model has seen; None if that is not known.
    """

    items: Sequence[Any]
    source: str
    asked: SeenImages
    tested: int
    seen: SeenImages | None


def new_images(
    folder: Path,
    dataset: Any,
    classifier: PromptedClassifier,
    seen: SeenImages | None,
    args: argparse.Namespace,
) -> NewImages:
    """Labelled images to calibrate the model in a folder: of --images, else the validation images
    of its run.

    Raises:
        UsageError: there are none, the model has learned from one or may have, or test images are
            among them; a bank is of another tower.
    """
    if args.images and is_bank(args.images):
        Bank(args.images).check(classifier)
        seen = seen if has_looks(Bank(args.images), args.accept_unknown_images) else None
    known = seen or NOTHING
    items, source = labelled_images(folder, dataset, args.images, classifier.class_names)
    items, asked = without_learned(items, known, folder)
    tested = count_shared(items, dataset.test if dataset else [])
    tested = max(tested, count(known, "tested", asked))
    accepted = args.accept_test_images
    check_test_images(tested, len(items), str(folder), accepted, "--accept-test-images")
    return NewImages(items, source, asked, tested, seen)


def count(seen: SeenImages, role: str, asked: SeenImages) -> int:
    """How many of the asked images the model has seen in this role."""
    return int(seen.of_role(role).equal(asked).sum())


def print_changes(
    folder: Path,
    dataset: Any,
    classifier: PromptedClassifier,
    fitted: Calibration,
    held: Outputs,
    by_class: bool,
) -> None:
    """The changes by a calibration on the test images of its run, and on those of new classes."""
    method = predicting()[classifier.method]
    classes = dataset.cfg.DATASET.SUBSAMPLE_CLASSES
    test = None
    # As in a prediction, whose answer the fit is of; and not of validation images
    if method.kind != "transductive" and dataset.cfg.TEST.SPLIT == "test":
        test = saved_outputs(folder)
    if test is None:
        test = outputs_of(classifier, dataset.test)
    print_report(f"{dataset.title}, {classes} classes", report(fitted, test, held=held))
    if by_class:
        print_classes(fitted.sets.apply(test.logits, COVERAGE), test.labels, classifier.class_names)
    if classes == "base" and method.transfers:
        new = read_dataset(folder, "new")
        names = names_of(new)
        test = outputs_of(classifier, new.test, names)
        changes = report(fitted, test)
        print_report(f"{dataset.title}, new classes", changes)


def seen_images(
    folder: Path, dataset: Any, method: str, accepts_unknown: bool
) -> SeenImages | None:
    """The images that a model has seen, by its folder or, of a run of an earlier version, by its
    dataset; None if neither says it and that is accepted, else UsageError.
    """
    seen = SeenImages.read(folder)
    if seen is not None:
        return seen
    if dataset is not None:
        return SeenImages.of_files(dataset.train_x, "learned")
    if not predicting()[method].learns:
        return NOTHING
    if accepts_unknown:
        return None
    fault = f"{folder} does not say which images it has learned from"
    remedy = (
        "give the folder of its run or fit, or accept it by --accept-unknown-images, "
        "which marks the calibration"
    )
    raise UsageError(fault, remedy, folder)


def has_looks(bank: Bank, accepts_unknown: bool) -> bool:
    """Whether a bank says how its images look, so that learned ones are known; UsageError if it
    does not and that is not accepted.
    """
    if bank.knows_looks or accepts_unknown:
        return bank.knows_looks
    fault = f"{bank.folder} does not say how its images look: the model may have learned from them"
    remedy = (
        "embed with --near-copies, or accept it by --accept-unknown-images, which marks the "
        "calibration"
    )
    raise UsageError(fault, remedy, bank.folder)


def without_learned(
    items: Sequence[Datum], seen: SeenImages, folder: Path
) -> tuple[list[Datum], SeenImages]:
    """The images without near-copies of those that the model has learned from, and their checksums.

    Raises UsageError if it has learned from one of them, or if near-copies are many.
    """
    asked = seen_of(items)
    learned = seen.of_role("learned")
    if equal := int(learned.equal(asked).sum()):
        images = f"{equal:,} of {len(items):,} images for the calibration"
        fault = f"{images} are training images of {folder}"
        raise UsageError(fault, "give images that the model has not learned from", folder)
    if len(asked) < len(items):
        return list(items), asked  # one cannot be read, which the prediction says
    near = learned.similar(asked)
    if near.any():
        example = items[int(near.argmax())].impath
        fault = (
            f"{near.sum():,} of {len(items):,} images for the calibration are near-copies of "
            "training images"
        )
        if near.mean() > MOST_NEAR:
            raise UsageError(f"{fault} of {folder}, such as {example}", "give other images", folder)
        print(printable(f"Left out: {fault}, such as {example}"))
    return list(compress(items, ~near)), asked.part(~near)


def read_dataset(run: Path, classes: str = "") -> Any:
    """The dataset of a run, whose images stay as they are; `classes` replaces its
    DATASET.SUBSAMPLE_CLASSES.

    Raises UsageError if that would draw or split its images: the run may be another person's.
    """
    cfg = run_configuration(run)
    cfg.DATASET.SUBSAMPLE_CLASSES = classes or cfg.DATASET.SUBSAMPLE_CLASSES
    check_dataset_name(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    seed = cfg.DATASET.get("SPLIT_SEED", -1)
    root = Path(cfg.DATASET.ROOT).expanduser()
    split = root / dataset.dataset_dir
    split /= f"split_seed{seed}.json" if seed >= 0 else dataset.split_file
    if (dataset.is_synthetic or seed >= 0 or not root.is_dir()) and not split.is_file():
        remedy = "start where the run was started, restore its images, or export it for --images"
        raise UsageError(f"there is no file {split}", remedy, run)
    with redirect_stdout(io.StringIO()):  # of lines about a dataset that is made
        return dataset(cfg)


def names_of(dataset: Any) -> list[str]:
    return list(map(plain, dataset.classnames))


def saved_outputs(run: Path) -> Outputs | None:
    """The logits that the test of a run has saved (TEST.SAVE_LOGITS), else None; UsageError for a
    damaged file.
    """
    file = run / PREDICTIONS_FILE
    if not file.is_file():
        return None
    labels = read_predictions(run)["label"]
    try:
        logits = read_arrays(file, [LOGITS], LARGEST + 1024)[LOGITS].astype(float)
        checked(logits, labels)
    except KeyError:
        return None
    except Exception as error:  # as in `predictions.read`
        raise UsageError(f"{file} is damaged", "start its run again", file) from error
    return Outputs(logits, labels)


def print_report(where: str, measures: dict[str, Any]) -> None:
    """`report` in words."""
    print(f"{where}:")
    for key in ("before", "after"):
        if values := measures.get(key):
            print(
                f"  {key.replace('_', ' '):<14}  ECE {values['ece']:6.2f}%  NLL {values['nll']:.4f}"
            )
    for kind, values in measures["sets"].items():
        sizes = f"{values['size']:.2f} classes on average, {values['empty']:.0f} empty"
        name = f"{100 * COVERAGE:g}% sets, {kind.upper()}"
        print(f"  {name}: cover {values['coverage']:.2f}%, {sizes}")
    for values in measures["unknown"]:
        answered = f"{values['answered']:.1f}% of the images, {values['wrong']:.2f}% of them wrong"
        print(f"  asked for at most {values['asked']:g}% errors: answers {answered}")


def print_classes(sets: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    """The coverage and the mean size of the sets (images, classes) of each class, and the mean
    gap.
    """
    gaps = []
    for label in np.unique(labels):
        values = of_sets(sets[labels == label], labels[labels == label])
        gaps.append(abs(values["coverage"] - 100 * COVERAGE))
        print(f"    {names[label]}: cover {values['coverage']:.1f}%, {values['size']:.2f} classes")
    print(f"    mean difference from {100 * COVERAGE:g}% over the classes: {np.mean(gaps):.2f}")
