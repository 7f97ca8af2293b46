"""Opening a model: a run, an artefact, a published checkpoint, or zero-shot CLIP."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import load_checkpoint
from yacs.config import CfgNode

import trainers
from common.errors import UsageError, choose
from common.names import check_known_names, check_names, check_template
from common.nearest import what_exists
from datasets import title
from trainers.artefact import CONFIG as DESCRIPTION
from trainers.artefact import INPUT, TEST_TRANSFORMS, Description
from trainers.base import TEMPLATE
from trainers.checkpoints import find_checkpoint, is_checkpoint
from trainers.classifier import PromptedClassifier

from ..arguments import parse_arguments
from ..configs import read_yaml
from ..configuration import setup_cfg
from ..output_folder import CONFIG
from ..results import FILE as RESULTS
from ..results import read_results, selected_on_test

CHECKPOINTS = "model*.pth.tar*"
RECORDED = (  # facts of results.json that an artefact keeps
    *("classes", "shots", "seed", "epochs", "tested_epoch", "split", "n_test", "accuracy"),
    *("date", "version", "commit", "dirty"),
)


class Model(NamedTuple):
    """A classifier, and its name among those it is compared with."""

    name: str
    classifier: PromptedClassifier


def is_model(path: Path) -> bool:
    """Whether a path looks like a model, and not like images."""
    if path.is_dir():
        return any((path / name).exists() for name in (DESCRIPTION, CONFIG, RESULTS)) or has_checkpoints(path)
    return path.match(CHECKPOINTS)


def has_checkpoints(folder: Path) -> bool:
    return any(True for pattern in (CHECKPOINTS, f"*/{CHECKPOINTS}") for _ in folder.glob(pattern))


def open_models(paths: Sequence[Path], options: Namespace, class_names: Sequence[str] = ()) -> list[Model]:
    """The models at these paths; zero-shot CLIP on `options.backbone` if there is no path.

    Args:
        paths: see `arguments.MODELS`.
        options: those of `arguments.add_model_options`.
        class_names: for a model that has none. Without them it takes those of the first model that has some.

    Raises:
        UsageError: a path is not a model, or its files do not fit together; as for `PromptedClassifier`.
    """
    if not paths:
        if not class_names:
            raise UsageError("zero-shot CLIP has no class names", "give them by --classes or --classes-file")
        if options.template:
            check_template(options.template, "--template")
        classifier = PromptedClassifier.zero_shot(
            options.backbone, class_names, options.template or TEMPLATE, options.device
        )
        return [Model(classifier.method, classifier)]
    check_options(paths, options)
    found = [read_model(path, options) for path in paths]
    names = list(class_names) or next((known.class_names for known, _, _ in found if known.class_names), [])
    classifiers = []
    for path, (description, checkpoint, backbone) in zip(paths, found, strict=True):
        if not description.class_names:
            description = replace(description, class_names=check_names(names) if names else [])
        classifiers.append(PromptedClassifier(description, checkpoint, str(path), backbone, options.device))
    methods = [classifier.method for classifier in classifiers]
    return [
        Model(method if methods.count(method) == 1 else f"{method} {path}", classifier)
        for path, method, classifier in zip(paths, methods, classifiers, strict=True)
    ]


def check_options(paths: Sequence[Path], options: Namespace) -> None:
    """Check that each option has a model that reads it.

    Raises:
        UsageError: none of the models does.
    """
    published = any(not any((path / name).exists() for name in (DESCRIPTION, CONFIG)) for path in paths)
    read_by = {
        "template": (False, "zero-shot CLIP without a MODEL"),
        "load_epoch": (any(not (path / DESCRIPTION).exists() for path in paths), "runs and published checkpoints"),
        "config_file": (published, "published checkpoints"),
        "trainer": (published, "published checkpoints"),
    }
    for name, (used, kind) in read_by.items():
        if getattr(options, name) not in ("", None) and not used:
            raise UsageError(f"--{name.replace('_', '-')} has no use here: it is for {kind}", "leave it out")


Found = tuple[Description, dict[str, Any] | None, str]


def read_model(path: Path, options: Namespace) -> Found:
    """The description of a model, the checkpoint with its learned tensors (None if nothing is learned), and the
    backbone to load."""
    if (path / DESCRIPTION).exists():
        return *PromptedClassifier.read_folder(path), options.backbone
    if (path / CONFIG).exists():
        return read_run(path, options)
    if not is_model(path):
        if not path.exists():
            raise UsageError(f"there is no model {path}", what_exists(path), path)
        raise UsageError(
            f"{path} is not a model", "give a run's output folder, or one that tools/export.py wrote", path
        )
    if not options.config_file:
        raise UsageError(f"{path} has no {CONFIG}", "name the YAML file of its method by --config-file", path)
    return read_published(path, options)


def read_run(folder: Path, options: Namespace) -> Found:
    """The prompts that a finished run has tested, or those of `options.load_epoch`."""
    results = read_results(folder)
    if results is None and options.load_epoch is None:
        raise UsageError(
            f"the run in {folder} is not finished: it has no {RESULTS} with an accuracy",
            "run its command again, or choose one of its epochs by --load-epoch",
            folder,
        )
    try:
        name = read_yaml(folder / CONFIG)["TRAINER"]["NAME"]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{folder / CONFIG} is damaged", "restore it, or run again", folder) from error
    cfg = configuration(str(name), folder / CONFIG, options)
    checkpoint = None
    if trainers.methods()[cfg.TRAINER.NAME].learns:
        checkpoint = read_checkpoint(folder, cfg.TRAINER.NAME, options.load_epoch)
    training = {key: results[key] for key in RECORDED if key in results} if results else {}
    if results and selected_on_test(results):
        training["selected_on_test"] = True
    return describe(cfg, checkpoint, training), checkpoint, cfg.MODEL.BACKBONE.NAME


def read_published(path: Path, options: Namespace) -> Found:
    """A checkpoint of the published code, or one of ours without its run; `options.config_file` has its settings."""
    file = Path(options.config_file)
    name = options.trainer or file.absolute().parent.name
    choose(name, trainers.methods(), "trainer", "" if options.trainer else "--trainer is missing")
    cfg, checkpoint = configuration(name, file, options), read_checkpoint(path, name, options.load_epoch)
    return describe(cfg, checkpoint, {}), checkpoint, cfg.MODEL.BACKBONE.NAME


def read_checkpoint(path: Path, method: str, epoch: int | None) -> dict[str, Any]:
    """A checkpoint by its file, the folder it is in, or the output folder of its run."""
    file = path
    if path.is_dir():
        inside = any(True for _ in path.glob(CHECKPOINTS))  # the folder of the checkpoints itself
        folder, saved_as = (path.parent, path.name) if inside else (path, trainers.methods()[method].saved_as)
        try:
            file = Path(find_checkpoint(str(folder), saved_as, epoch, method))
        except UsageError as error:
            remedy = error.remedy.replace("check --model-dir", "give the output folder of a training run")
            raise UsageError(error.what, remedy, error.where) from error
    checkpoint = load_checkpoint(str(file))
    if not is_checkpoint(checkpoint):
        raise UsageError(f"{file} is not a checkpoint of a training run", "give another", file)
    if names := (checkpoint.get("metadata") or {}).get("class_names"):
        check_known_names(names, file)
    return checkpoint


def configuration(method: str, file: Path, options: Namespace) -> CfgNode:
    choose(method, trainers.methods(), "method", file)
    argv = ["--trainer", method, "--config-file", str(file), "--backbone", options.backbone]
    return setup_cfg(parse_arguments(argv))


def describe(cfg: CfgNode, checkpoint: dict[str, Any] | None, training: dict[str, Any]) -> Description:
    """The description of a configuration's prompts."""
    metadata = (checkpoint or {}).get("metadata") or {}
    method = trainers.methods()[cfg.TRAINER.NAME]
    image = {key: cfg.INPUT[key] for key in INPUT if key in cfg.INPUT}
    image["TRANSFORMS"] = [name for name in cfg.INPUT.TRANSFORMS if name in TEST_TRANSFORMS]
    dataset = (
        DATASET_REGISTRY.get(cfg.DATASET.NAME) if cfg.DATASET.NAME in DATASET_REGISTRY.registered_names() else None
    )
    return Description(
        method=cfg.TRAINER.NAME,
        settings=asdict(method.settings_of(cfg)),
        input={key: list(value) if isinstance(value, tuple | list) else value for key, value in image.items()},
        backbone=cfg.MODEL.BACKBONE.NAME,
        class_names=metadata.get("class_names", []),
        dataset=title(cfg),
        dataset_template=getattr(dataset, "template", ""),
        template=cfg.DATASET.TEMPLATE,
        training=training,
    )
