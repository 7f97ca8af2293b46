"""Opening a model: a run, an exported folder, a published checkpoint, or zero-shot CLIP."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import trainers
from clip import CLIP
from common.errors import UsageError, one_line
from common.files import RESULTS_FILE, RUN_CONFIG_FILE
from common.names import printable
from configs.methods import check_method
from datasets import sentences
from trainers.base import TEMPLATE
from trainers.base.method import Method
from trainers.base.plugin import load_method_file

from . import peft
from .arguments import CHECKPOINTS, check_exists
from .artefact import (
    EXPORT_CONFIG_FILE,
    NO_NAMES,
    PROMPTS,
    Description,
    read_artefact,
)
from .calibrated import Calibration, calibration_in
from .classifier import PromptedClassifier
from .description import describe, doubts
from .options import DEFAULTS, LoadOptions
from .runs import (
    checkpoint_file,
    epoch_of,
    published_configuration,
    read_checkpoint,
    recorded_facts,
    run_configuration,
    run_of,
)

REFIT = "fit it again by tools/calibrate.py"


# What `read_model` reads: the description, the checkpoint if it learns any, the backbone to load
Content = tuple[Description, dict[str, Any] | None, str]


class Model(NamedTuple):
    """A classifier, and its name among those it is compared with."""

    name: str
    classifier: PromptedClassifier


def kind_of(path: Path) -> str:
    """The kind of a model at a path: `exported` (by tools/export.py), `peft` (an adapter), `run`,
    `checkpoint` (also a folder), or empty.
    """
    if (path / peft.CONFIG).exists() and not (path / PROMPTS).exists():
        return "peft"
    if (path / EXPORT_CONFIG_FILE).exists():
        return "exported"
    if (path / RUN_CONFIG_FILE).exists():
        return "run"
    published = {method.published_file for method in trainers.methods().values()} - {""}
    if path.is_dir():
        names = [RESULTS_FILE, CHECKPOINTS, f"*/{CHECKPOINTS}", *published]
        is_checkpoint_there = any(any(path.glob(name)) for name in names)
    else:
        is_checkpoint_there = any(map(path.match, [CHECKPOINTS, *published]))
    return "checkpoint" if is_checkpoint_there else ""


def load(
    name: str | PathLike | None,
    options: LoadOptions = DEFAULTS,
    clip: CLIP | None = None,
    **values: Any,
) -> PromptedClassifier:
    """The classifier of an exported folder, of a run, of a checkpoint, or of a folder on the
    Hugging Face Hub; zero-shot CLIP without a name.

    Args:
        name: a folder or a file; or `user/name`, a repository that `tools/export.py --push-to-hub`
            wrote.
        clip: the backbone, if it is loaded already.
        values: of `LoadOptions`, instead of those in `options`: `load("exported", device="cpu")`.

    Raises:
        UsageError: a file is missing, damaged, too large or changed; the backbone has other
            weights; there is no such repository, or no connection to the Hub and no copy of it.
    """
    options = replace(options, **values)
    for file in options.plugin:
        load_method_file(Path(file))
    if not name:
        return zero_shot(options)
    path = Path(name)
    if path.is_absolute():
        check_exists(path)
    if not path.exists():
        path = from_hub(str(name), options.revision)
    check_options([path], options)
    return classifier_of(path, read_model(path, options), options, clip)


def from_hub(name: str, revision: str | None) -> Path:
    """The downloaded folder of a model on the Hub; UsageError says first that there is no folder of
    this name here.
    """
    from .hub import download  # here, as most users need no Hub

    try:
        return download(name, revision)
    except UsageError as error:
        fault = f"there is no folder {one_line(name)} here, and none on the Hub: {error.fault}"
        raise UsageError(fault, error.remedy) from error


def open_models(paths: Sequence[Path], options: LoadOptions) -> list[Model]:
    """The models at these paths; zero-shot CLIP if there is no path.

    A model of a fit has the name of its folder, and another one that of its method. A model without
    class names takes those of the options or else of the first model that has some.

    Raises:
        UsageError: a path is not a model, or its files do not fit together; as for
            `PromptedClassifier`.
    """
    if not paths:
        classifier = zero_shot(options)
        return [Model(classifier.method, classifier)]
    check_options(paths, options)
    found = [read_model(path, options) for path in paths]
    if not options.class_names:
        known = (description.class_names for description, _, _ in found)
        options = replace(options, class_names=next(filter(None, known), ()))
    classifiers = [
        classifier_of(path, content, options) for path, content in zip(paths, found, strict=True)
    ]
    names = [
        path.name if "fit" in one.description.training else one.method
        for path, one in zip(paths, classifiers, strict=True)
    ]
    names = [
        name if names.count(name) == 1 else f"{name} {path}"
        for name, path in zip(names, paths, strict=True)
    ]
    return list(map(Model, names, classifiers))


def zero_shot(options: LoadOptions) -> PromptedClassifier:
    if not options.backbone:
        fault = "no MODEL is given"
        raise UsageError(fault, "name a run's output folder, or --backbone for zero-shot CLIP")
    if not options.class_names:
        raise UsageError("zero-shot CLIP has no class names", NO_NAMES)
    return PromptedClassifier.zero_shot(
        options.backbone,
        options.class_names,
        options.template or TEMPLATE,
        options.device,
        sentences.read_sentences(options.sentences),
    )


def classifier_of(
    path: Path, content: Content, options: LoadOptions, clip: CLIP | None = None
) -> PromptedClassifier:
    """The classifier of what `read_model` has read, with lines about what its files do not say."""
    description, checkpoint, backbone = content
    check_method(description.method, trainers.predicting(), path)
    method = trainers.predicting()[description.method]
    calibration = calibration_of(path, method, options)
    if not description.class_names:
        names = options.class_names or (calibration.class_names if calibration else ())
        description = replace(description, class_names=list(names))
    options = replace(options, backbone=backbone)
    classifier = PromptedClassifier(description, checkpoint, str(path), options, clip, calibration)
    for line in doubts(description, method, classifier.backbone):
        print(printable(f"{path} {line}"))
    return classifier


def calibration_of(path: Path, method: type[Method], options: LoadOptions) -> Calibration | None:
    """The calibration of the model at a path; None without one.

    Raises:
        UsageError: the file is damaged, or of another model; of another epoch, only if `options`
            ask for a calibration.
    """
    found = None if options.calibration is False else calibration_in(path)
    if not found:
        return None
    given = options.epoch is not None
    remedy = "leave out --load-epoch (in Python: epoch)" if given else REFIT
    try:
        found.check_model(model_file(path, method, options.epoch), remedy)
    except UsageError as error:
        if options.calibration or not given:
            raise
        print(printable(f"Not calibrated: {error.fault}"))
        return None
    return found


def model_file(path: Path, method: type[Method], epoch: int | None = None) -> Path:
    """The file that tells a model from others: config.json, a checkpoint or, if it learns nothing,
    config.yaml.
    """
    if kind_of(path) == "exported":
        return path / EXPORT_CONFIG_FILE
    if kind_of(path) == "peft":
        return path / peft.TENSORS
    return checkpoint_file(path, method, epoch) if method.learns else path / RUN_CONFIG_FILE


def check_options(paths: Sequence[Path], options: LoadOptions) -> None:
    """Raise UsageError for an option that none of the models reads."""
    kinds = {path: kind_of(path) for path in paths}
    checkpoints = [path for path, kind in kinds.items() if kind in ("checkpoint", "")]
    unread: dict[str, Any] = {}
    folders = ("exported", "peft")
    if not any(kind not in folders and not path.is_file() for path, kind in kinds.items()):
        unread["--load-epoch"] = options.epoch
    if not checkpoints:
        unread["--config-file"] = options.config_file
    if all(map(run_of, checkpoints)) and not (checkpoints and options.config_file):
        unread["--trainer"] = options.method
        unread["--template"] = options.template
        unread["--sentences"] = options.sentences
    for option, value in unread.items():
        if value not in ("", None):
            raise UsageError(f"{option} has no use here", "leave it out: no MODEL reads it")


def read_model(path: Path, options: LoadOptions) -> Content:
    """The description of a model, the checkpoint with its tensors if it learns any, and the
    backbone to load.
    """
    check_exists(path)
    kind = kind_of(path)
    if kind == "exported":
        return *read_artefact(path), options.backbone
    if kind == "peft":
        return peft.read_adapter(path, options)
    if not kind:
        remedy = "give a run's output folder, or one of tools/fit.py or export.py; or --backbone"
        raise UsageError(f"{path} is not a model", remedy, path)
    run = path if kind == "run" else None if options.config_file else run_of(path)
    cfg = run_configuration(run) if run else published_configuration(path, options)
    method = trainers.methods()[cfg.TRAINER.NAME]
    training: dict[str, Any] = {}
    if run:
        training = {
            "classes": cfg.DATASET.SUBSAMPLE_CLASSES,
            "shots": cfg.DATASET.NUM_SHOTS,
            "seed": cfg.SEED,
        }
        training |= recorded_facts(run, epoch_of(path, options.epoch) if method.learns else None)
    # A test-time method may have started from prompts: those of an epoch of a run, or of a file
    if not method.learns and (training.get("epochs") or cfg.MODEL.INIT_WEIGHTS):
        remedy = "predict with that run's method"
        raise UsageError(
            f"{path} started from the prompts of another run, and does not hold them", remedy, path
        )
    checkpoint = read_checkpoint(path, cfg, options.epoch) if method.learns else None
    return (
        describe(cfg, checkpoint, training),
        checkpoint,
        options.backbone or cfg.MODEL.BACKBONE.NAME,
    )
