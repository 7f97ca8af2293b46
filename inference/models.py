"""Opening a model: a run, an exported folder, a published checkpoint, or zero-shot CLIP."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import load_checkpoint
from yacs.config import CfgNode

import trainers
from common.errors import UsageError, check_dataset_name, check_name
from common.names import check_names, printable
from common.results import RESULTS_FILE, RUN_CONFIG_FILE, read_results, selected_on_test
from configs.methods import IN_A_FILE
from datasets import sentences, title
from trainers.base import TEMPLATE
from trainers.base.checkpoints import find_checkpoint, is_checkpoint
from trainers.base.data_use import inherited, on_test_images
from trainers.base.method import Method

from .arguments import CHECKPOINTS, check_exists
from .artefact import (
    EXPORT_CONFIG_FILE,
    INPUT,
    NO_NAMES,
    Description,
    calibration_in,
    read_artefact,
)
from .classifier import PromptedClassifier
from .description import configuration

if TYPE_CHECKING:
    from .calibrated import Calibration

REFIT = "fit it again by tools/calibrate.py"
TEST_TRANSFORMS = ("normalize",)  # of INPUT.TRANSFORMS; the others are for training
# Facts of results.json that an exported folder keeps
TEST_FACTS = ["epochs", "tested_epoch", "split", "n_test", "accuracy"]  # of one epoch
RECORDED = [*TEST_FACTS, "date", "version", "commit", "dirty"]


class Model(NamedTuple):
    """A classifier, and its name among those it is compared with."""

    name: str
    classifier: PromptedClassifier


def kind_of(path: Path) -> str:
    """The kind of a model at a path: `exported` (by tools/export.py), `run`, `checkpoint` (also a
    folder), or empty.
    """
    if (path / EXPORT_CONFIG_FILE).exists():
        return "exported"
    if (path / RUN_CONFIG_FILE).exists():
        return "run"
    names = (
        CHECKPOINTS,
        *filter(None, {method.published_file for method in trainers.methods().values()}),
    )
    if not path.is_dir():
        return "checkpoint" if any(map(path.match, names)) else ""
    return (
        "checkpoint"
        if any(any(path.glob(name)) for name in (RESULTS_FILE, *names, f"*/{CHECKPOINTS}"))
        else ""
    )


def open_models(
    paths: Sequence[Path], options: Namespace, class_names: Sequence[str] = ()
) -> list[Model]:
    """The models at these paths; zero-shot CLIP on `options.backbone` if there is no path.

    Args:
        paths: see `arguments.MODELS`.
        options: those of `arguments.add_model_options`.
        class_names: for a model that has none. Without them it takes those of the first model that
            has some.

    Raises:
        UsageError: a path is not a model, or its files do not fit together; as for
            `PromptedClassifier`.
    """
    if not paths:
        if not options.backbone:
            raise UsageError(
                "no MODEL is given", "name a run's output folder, or --backbone for zero-shot CLIP"
            )
        if not class_names:
            raise UsageError("zero-shot CLIP has no class names", NO_NAMES)
        template = options.template or TEMPLATE
        given = sentences.read(options.sentences)
        classifier = PromptedClassifier.zero_shot(
            options.backbone, class_names, template, options.device, given
        )
        return [Model(classifier.method, classifier)]
    check_options(paths, options)
    found = [read_model(path, options) for path in paths]
    known = (
        [check_names(class_names)]
        if class_names
        else [description.class_names for description, _, _ in found]
    )
    names = next(filter(None, known), [])
    classifiers = []
    for path, (description, checkpoint, backbone) in zip(paths, found, strict=True):
        check_name(description.method, trainers.predicting(), "method", path, IN_A_FILE)
        refit = getattr(options, "refit", False)
        calibration = (
            None
            if refit
            else calibration_of(path, trainers.predicting()[description.method], options)
        )
        if not description.class_names:
            own = list(calibration.class_names) if calibration else []
            description = replace(description, class_names=names or own)  # noqa: PLW2901
        more: dict[str, Any] = {
            "calibration": calibration,
            "max_pixels": getattr(options, "max_pixels", None),
        }
        classifier = PromptedClassifier(
            description, checkpoint, str(path), backbone, options.device, **more
        )
        classifiers.append(classifier)
        if not description.backbone_sha256:
            name = classifiers[-1].cfg.MODEL.BACKBONE.NAME
            text = (
                f"{path} does not say on which weights its prompts were learned: check that "
                f"they are those of {name}"
            )
            print(printable(text))
        if (
            description.training.get("plugin_sha256", "")
            != trainers.predicting()[description.method].plugin_sha256
        ):
            text = (
                f"{path} was learned by another version of {description.method}: its file has "
                "changed"
            )
            print(printable(text))
        sentence = description.template or description.dataset_template
        if trainers.predicting()[description.method].reads_template and not sentence:
            text = (
                f"{path} does not say its dataset: {description.method} reads the class names "
                f"in {TEMPLATE!r}"
            )
            print(printable(text))
    methods = [classifier.method for classifier in classifiers]
    names = [
        name if methods.count(name) == 1 else f"{name} {path}"
        for name, path in zip(methods, paths, strict=True)
    ]
    return list(map(Model, names, classifiers))


def calibration_of(path: Path, method: type[Method], options: Namespace) -> "Calibration | None":
    """What was fitted for the model at a path, if anything.

    Raises:
        UsageError: the file is damaged, or of another model; of another epoch, only if `options`
            ask for its promises.
    """
    if not (found := calibration_in(path)):
        return None
    given = options.load_epoch is not None
    asked = getattr(options, "unknown", False) or getattr(options, "sets", None)
    try:
        found.check_model(
            file_of(path, method, options.load_epoch),
            "leave out --load-epoch (in Python: epoch)" if given else REFIT,
        )
    except UsageError as error:
        if asked or not given:
            raise
        print(printable(f"Not calibrated: {error.what}"))
        return None
    return found


def file_of(path: Path, method: type[Method], epoch: int | None = None) -> Path:
    """The file that tells a model from others: config.json, a checkpoint or, if it learns nothing,
    config.yaml.
    """
    if kind_of(path) == "exported":
        return path / EXPORT_CONFIG_FILE
    return checkpoint_file(path, method, epoch) if method.learns else path / RUN_CONFIG_FILE


def check_options(paths: Sequence[Path], options: Namespace) -> None:
    """Raise UsageError for an option that none of the models reads."""
    kinds = [(kind_of(path), path.is_file()) for path in paths]
    readers = {"load_epoch": any(kind != "exported" and not is_file for kind, is_file in kinds)}
    checkpoints = [
        path for (kind, _), path in zip(kinds, paths, strict=True) if kind in ("checkpoint", "")
    ]
    readers["config_file"] = bool(checkpoints)
    configured = bool(checkpoints) and (options.config_file or not all(map(run_of, checkpoints)))
    readers |= dict.fromkeys(("trainer", "template", "sentences"), configured)
    for name, is_read in readers.items():
        if getattr(options, name) not in ("", None) and not is_read:
            raise UsageError(
                f"--{name.replace('_', '-')} has no use here", "leave it out: no MODEL reads it"
            )


def read_model(path: Path, options: Namespace) -> tuple[Description, dict[str, Any] | None, str]:
    """The description of a model, the checkpoint with its tensors if it learns any, and the
    backbone to load.
    """
    check_exists(path)
    kind = kind_of(path)
    if kind == "exported":
        return *read_artefact(path), options.backbone
    if not kind:
        remedy = "give a run's output folder, or one of tools/fit.py or export.py"
        raise UsageError(f"{path} is not a model", remedy, path)
    run = path if kind == "run" else None if options.config_file else run_of(path)
    cfg = run_configuration(run) if run else published_configuration(path, options)
    method = trainers.methods()[cfg.TRAINER.NAME]
    training: dict[str, Any] = {}
    if run:
        shots = "by class" if isinstance(cfg.DATASET.NUM_SHOTS, str) else cfg.DATASET.NUM_SHOTS
        training = {"classes": cfg.DATASET.SUBSAMPLE_CLASSES, "shots": shots, "seed": cfg.SEED}
        training |= recorded_facts(
            run, epoch_of(path, options.load_epoch) if method.learns else None
        )
    # A test-time method may have started from prompts: those of an epoch of a run, or of a file
    if not method.learns and (training.get("epochs") or cfg.MODEL.INIT_WEIGHTS):
        remedy = "predict with that run's method"
        raise UsageError(
            f"{path} started from the prompts of another run, and does not hold them", remedy, path
        )
    checkpoint = read_checkpoint(path, cfg, options.load_epoch) if method.learns else None
    return (
        describe(cfg, checkpoint, training),
        checkpoint,
        options.backbone or cfg.MODEL.BACKBONE.NAME,
    )


def run_of(checkpoint: Path) -> Path | None:
    """The output folder of the run of this project that wrote a file or a folder of checkpoints;
    None without one.
    """
    return next(
        (
            parent
            for parent in list(checkpoint.absolute().parents)[:2]
            if (parent / RUN_CONFIG_FILE).exists()
        ),
        None,
    )


def epoch_of(path: Path, given: int | None) -> int | None:
    """The epoch of a model: that of a file of a checkpoint, or the given one; None for the one that
    was tested.
    """
    number = path.name.rpartition("-")[2]
    return int(number) if path.is_file() and number.isdecimal() else given


def run_configuration(run: Path) -> CfgNode:
    anything = get_cfg_default()
    anything.set_new_allowed(True)
    anything.merge_from_file(str(run / RUN_CONFIG_FILE))
    cfg = configuration(anything.TRAINER.NAME, run / RUN_CONFIG_FILE)
    cfg.merge_from_file(str(run / RUN_CONFIG_FILE))
    return cfg


def published_configuration(path: Path, options: Namespace) -> CfgNode:
    """That of a checkpoint of the published code, or of one of ours without its run: the YAML file
    of its method.
    """
    if not options.config_file:
        remedy = "name the YAML file of its method by --config-file (in Python: config_file)"
        raise UsageError(f"{path} has no {RUN_CONFIG_FILE}", remedy, path)
    file = Path(options.config_file)
    name = options.trainer or file.absolute().parent.name
    check_name(
        name,
        trainers.methods(),
        "trainer",
        "" if options.trainer else "--trainer (in Python: method) is missing",
    )
    cfg = configuration(name, file)
    cfg.merge_from_file(str(file))
    if cfg.DATASET.NAME:  # a misspelt one would have no sentence
        check_dataset_name(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    if options.template:
        if not trainers.methods()[name].reads_template:
            raise UsageError("--template has no use here", f"leave it out: {name} does not read it")
        cfg.DATASET.TEMPLATE = options.template
    if options.sentences:
        cfg.DATASET.SENTENCES = str(options.sentences)
    if cfg.DATASET.SENTENCES and not trainers.methods()[name].reads_sentences:
        raise UsageError(
            "--sentences has no use here", f"leave it out: {name} reads no sentences for classes"
        )
    return cfg


def recorded_facts(run: Path, epoch: int | None) -> dict[str, Any]:
    """What results.json of a finished run says; of another epoch than the tested one, what holds
    for each epoch.

    {} for an epoch of an unfinished run.
    """
    results = read_results(run)
    if results is None and epoch is None:
        what = f"the run in {run} is not finished: it has no {RESULTS_FILE} with an accuracy"
        remedy = (
            "run its command again, or choose one of its epochs by --load-epoch (in Python: epoch)"
        )
        raise UsageError(what, remedy, run)
    results = results or {}
    other = epoch not in (None, results.get("tested_epoch"))
    selected = {"selected_on_test": True} if not other and selected_on_test(results) else {}
    return {
        key: results[key]
        for key in RECORDED
        if key in results and not (other and key in TEST_FACTS)
    } | selected


def checkpoint_file(path: Path, method: type[Method], epoch: int | None) -> Path:
    """The file of a checkpoint, by itself, the folder it is in, or the output folder of its run."""
    if not path.is_dir():
        return path
    folder = path
    saved_as = method.saved_as
    if any(path.glob(CHECKPOINTS)):  # the folder of the checkpoints itself
        folder = path.parent
        saved_as = path.name
    try:
        return Path(
            find_checkpoint(str(folder), saved_as, epoch, method.__name__, method.published_file)
        )
    except UsageError as error:
        remedy = error.remedy.replace(
            "check --model-dir", "give the output folder of a training run"
        )
        remedy = remedy.replace("--load-epoch", "--load-epoch (in Python: epoch)")
        raise UsageError(error.what, remedy, error.where) from error


def read_checkpoint(path: Path, cfg: CfgNode, epoch: int | None) -> dict[str, Any]:
    method = trainers.methods()[cfg.TRAINER.NAME]
    file = checkpoint_file(path, method, epoch)
    checkpoint = load_checkpoint(str(file))
    if file.name == method.published_file:
        checkpoint = method.of_published_file(checkpoint, str(file), method.settings_of(cfg))
    if not is_checkpoint(checkpoint):
        raise UsageError(f"{file} is not a checkpoint of a training run", "give another", file)
    return checkpoint


def describe(
    cfg: CfgNode, checkpoint: dict[str, Any] | None, training: dict[str, Any]
) -> Description:
    """The description of a configuration's prompts."""
    name = cfg.DATASET.NAME
    metadata = (checkpoint or {}).get("metadata") or {}
    # Also of a start, or of settings: they hold for each epoch
    choices, _ = inherited(checkpoint or {})
    selected = {"selected_on_test": True} if on_test_images(choices) else {}
    dataset = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
    plugin = metadata.get("plugin_sha256") or cfg.MODEL.get("PLUGIN_SHA256", "")
    keys = [key for key in (*INPUT, "MAX_PIXELS") if key in cfg.INPUT]
    transforms = [name for name in cfg.INPUT.TRANSFORMS if name in TEST_TRANSFORMS]
    return Description(
        method=cfg.TRAINER.NAME,
        settings=asdict(trainers.methods()[cfg.TRAINER.NAME].settings_of(cfg)),
        input={key: cfg.INPUT[key] for key in keys} | {"TRANSFORMS": transforms},
        backbone=cfg.MODEL.BACKBONE.NAME,
        backbone_sha256=str(
            metadata.get("weights_sha256") or cfg.MODEL.BACKBONE.get("SHA256") or ""
        ).lower(),
        class_names=metadata.get("class_names", []),
        dataset=title(cfg),
        dataset_template=getattr(dataset, "template", ""),
        template=cfg.DATASET.TEMPLATE,
        training=training | selected | ({"plugin_sha256": plugin} if plugin else {}),
        dataset_name=name,
        sentences=sentences.read(sentences.file_of(cfg)[0]),
    )
