"""The model of a run's folder, or of a published checkpoint."""

from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import load_checkpoint
from yacs.config import CfgNode

import trainers
from common.errors import UsageError, check_dataset_name, check_name
from common.files import RESULTS_FILE, RUN_CONFIG_FILE
from common.results import read_results
from trainers.base.checkpoints import find_checkpoint, is_checkpoint
from trainers.base.method import Method
from trainers.base.settings import without_removed

from .arguments import CHECKPOINTS
from .description import configuration
from .options import LoadOptions

# Facts of results.json that an exported folder keeps
TEST_FACTS = ["epochs", "tested_epoch", "split", "n_test", "accuracy"]  # of one epoch


ALWAYS = ["date", "version", "commit", "dirty"]


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
    section = trainers.predicting()[anything.TRAINER.NAME].section()
    own = without_removed(anything.TRAINER.get(section, {}), run / RUN_CONFIG_FILE)
    anything.TRAINER[section] = CfgNode(own)
    cfg.merge_tree(anything, str(run / RUN_CONFIG_FILE))
    return cfg


def published_configuration(path: Path, options: LoadOptions) -> CfgNode:
    """That of a checkpoint of the published code, or of one of ours without its run: the YAML file
    of its method.
    """
    if not options.config_file:
        remedy = "name the YAML file of its method by --config-file (in Python: config_file)"
        raise UsageError(f"{path} has no {RUN_CONFIG_FILE}", remedy, path)
    file = Path(options.config_file)
    name = options.method or file.absolute().parent.name
    check_name(
        name,
        trainers.methods(),
        "trainer",
        "" if options.method else "--trainer (in Python: method) is missing",
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
        fault = f"the run in {run} is not finished: it has no {RESULTS_FILE} with an accuracy"
        remedy = (
            "run its command again, or choose one of its epochs by --load-epoch (in Python: epoch)"
        )
        raise UsageError(fault, remedy, run)
    if results is None:
        return {}
    is_tested = epoch in (None, results.tested_epoch)
    facts = {key: getattr(results, key) for key in ALWAYS}
    if is_tested:
        facts |= {key: getattr(results, key) for key in TEST_FACTS}
        facts["selected_on_test"] = results.selected_on_test or None
    return {key: value for key, value in facts.items() if value not in (None, "")}


def checkpoint_file(path: Path, method: type[Method], epoch: int | None) -> Path:
    """The file of a checkpoint, by itself, the folder it is in, or the output folder of its run."""
    if not path.is_dir():
        return path
    folder = path
    name = method.checkpoint_folder
    if any(path.glob(CHECKPOINTS)):  # the folder of the checkpoints itself
        folder = path.parent
        name = path.name
    try:
        return Path(
            find_checkpoint(str(folder), name, epoch, method.__name__, method.published_file)
        )
    except UsageError as error:
        remedy = error.remedy.replace(
            "check --model-dir", "give the output folder of a training run"
        )
        remedy = remedy.replace("--load-epoch", "--load-epoch (in Python: epoch)")
        raise UsageError(error.fault, remedy, error.where) from error


def read_checkpoint(path: Path, cfg: CfgNode, epoch: int | None) -> dict[str, Any]:
    method = trainers.methods()[cfg.TRAINER.NAME]
    file = checkpoint_file(path, method, epoch)
    checkpoint = load_checkpoint(str(file))
    if file.name == method.published_file:
        checkpoint = method.of_published_file(checkpoint, str(file), method.settings_of(cfg))
    if not is_checkpoint(checkpoint):
        raise UsageError(f"{file} is not a checkpoint of a training run", "give another", file)
    return checkpoint
