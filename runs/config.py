"""The configuration of a run: built once from arguments and YAML files, and checked once."""

from argparse import Namespace
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, reduce
from itertools import chain
from operator import getitem
from pathlib import Path
from typing import Any, Literal

from dassl.config import clean_cfg, flatten, get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from yacs.config import CfgNode

import datasets
import trainers
from clip import OF_CLIP, TOWERS, preprocessing, weights_sha256
from clip.backbone import weight_file
from common.errors import UsageError, check_name
from common.files import RESULTS_FILE, RUN_CONFIG_FILE, check_folder
from common.records import SelectionRecord, Texts, read
from common.schema import FLAG, TEXT, TEXTS, Accepts, add_settings
from common.text import read_json
from configs.methods import IN_A_FILE
from trainers.base import streams

from . import ood
from .arguments import read_files, settings_of
from .trackers import check_wandb

# Settings that may differ when a run is resumed: what it computes stays the same, or as near as
# another machine allows.
RESUMABLE_CHANGES = {
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "USE_CUDA",
    "CACHE",
    "CACHE_GB",
    "DATASET.ROOT",
    "DATASET.SENTENCES",  # whose checksum may not
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE",
    "DATALOADER.CACHE_GB",
    "MODEL.COMPILE",
    "MODEL.BACKBONE.TOWERS",
    "MODEL.BACKBONE.CHECKPOINT_TEXT",
    "INPUT.MAX_PIXELS",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TEST.SELECT_ON_TEST",
}
WEIGHTS = "MODEL.BACKBONE.SHA256"
PLUGIN = "MODEL.PLUGIN_SHA256"
CHOSEN_BYTES = 1 << 22  # of a file of a choice
CHOSEN_GROUPS = "OPTIM", "INPUT", "DATALOADER", "TRAIN", "TRAINER"  # of its settings

SETTINGS = {
    "MODEL.COMPILE": (False, FLAG, "Put the layers of the towers through torch.compile (CUDA)"),
    "MODEL.BACKBONE.TOWERS": (
        "fast",
        Accepts(Literal[tuple(TOWERS)]),
        "plain: as published, the same results",
    ),
    WEIGHTS: (
        "",
        TEXT,
        "SHA-256 of the weights in hexadecimal: others are refused. A run fills it in",
    ),
    PLUGIN: (
        "",
        TEXT,
        "SHA-256 of the method's file, if --plugin names it: others are refused. A run fills it in",
    ),
    "MODEL.BACKBONE.CHECKPOINT_TEXT": (
        False,
        FLAG,
        "Recompute the text tower in the backward pass: less memory",
    ),
    "TEST.SELECT_ON_TEST": (
        False,
        FLAG,
        "Accept a choice or training that uses test images, and mark the results",
    ),
    "TEST.SAVE_LOGITS": (False, FLAG, "Write the logits of all classes to predictions.npz, too"),
    "TEST.CALIBRATE": (
        False,
        FLAG,
        "Fit a calibration on the validation images, and report ECE and NLL after it, too",
    ),
    "TEST.OOD": (
        [],
        TEXTS,
        "Datasets of out-of-distribution images: names of their YAML files, or new",
    ),
    "TEST.OOD_SCORES": (
        [],
        TEXTS,
        "Some of MCM, GL-MCM, MaxLogit, Energy, Entropy; empty: all of these; or NegLabel",
    ),
    "TEST.OOD_WORDS": (
        [],
        TEXTS,
        "For NegLabel: files with nouns and adjectives, one on a line; empty: a small list",
    ),
    "TEST.OOD_T": (1.0, Accepts(int | float, 1e-6), "Temperature of these scores"),
    **streams.SETTINGS,
}


class RunSpec:
    """The request for one run, from the options of train.py. Raises UsageError for a wrong YAML
    file or setting.

    Attributes:
        args: the options.
        cfg: all settings, frozen.
        chosen: the settings that the trials of a study have chosen.
        changed: {key: (value in the YAML files, value in the run)}.
        notes: lines about settings that the method does not read, or that are those of the
            backbone.
    """

    def __init__(self, args: Namespace):
        self.args = args
        self.files = read_files(args)
        self.options, self.pairs = settings_of(args)
        self.chosen = SelectedSettings({}, [])
        if args.chosen:
            self.chosen = read_chosen(args.chosen)
        method = args.trainer or self.pairs.get("TRAINER.NAME", "")
        cfg = merged(chain(*self.files.values()), method)
        before = flatten(cfg)
        self.merge_given(cfg)
        keys = [*self.options, *self.pairs, *self.chosen.settings]
        of_backbone = set_up(cfg, keys, args.dataset_config_file)
        trees = [tree for _, tree in self.files.get("--config-file", ())]
        unread = ignored(cfg, self.pairs, args.config_file, trees)
        self.cfg = cfg
        self.notes = [*unread, *of_backbone]
        self.changed = {
            key: (before[key], value)
            for key, value in flatten(cfg).items()
            if key in before and before[key] != value and not key.startswith("BY_DATASET.")
        }

    def merge_given(self, cfg: CfgNode) -> None:
        """Merge what the command line and --chosen give."""
        # Not by yacs, which would take "--output-dir 2024" for a number
        for key, value in self.options.items():
            *groups, name = key.split(".")
            reduce(getitem, groups, cfg)[name] = value
        cfg.merge_from_list(self.args.opts)
        for key, value in self.chosen.settings.items():
            if key in self.options or key in self.pairs:
                fault = f"--chosen has {key}, which the command line sets, too"
                raise UsageError(fault, "leave one of them out")
            check_chosen(key, cfg.TRAINER.NAME)
            cfg.merge_from_list([key, value])

    @property
    def is_finished(self) -> bool:
        """Whether there are results of this run, or of another one in its folder, and
        --skip-finished is given.
        """
        return self.args.skip_finished and Path(self.cfg.OUTPUT_DIR, RESULTS_FILE).is_file()

    @property
    def sources(self) -> dict[str, str]:
        """Where each setting that is not a default comes from."""
        now = flatten(self.cfg)
        sources: dict[str, str] = {}
        for content in self.files.values():
            name = "/".join(Path(content[-1][0]).parts[-2:])
            sources |= {key: name for _, tree in content for key in flatten(tree)}
        sources |= dict.fromkeys(self.cfg.BY_DATASET, "BY_DATASET")
        sources |= dict.fromkeys([*self.options, *self.pairs], "command line")
        sources |= dict.fromkeys(self.chosen.settings, "a choice")
        return {key: source for key, source in sources.items() if key in now}

    def check(self) -> None:
        """Check what takes no time, and fill in the checksum of the weights
        (MODEL.BACKBONE.SHA256), unless finished.

        Raises UsageError if the trainer, the dataset, the backbone, a
        package or the prompts to test do not exist.
        """
        args = self.args
        cfg = self.cfg
        if self.is_finished:
            return
        check_name(
            cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names(), "trainer", otherwise=IN_A_FILE
        )
        check_name(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names(), "dataset")
        method = trainers.methods().get(cfg.TRAINER.NAME)
        if method:
            self.check_weights()
            if args.eval_only and args.model_dir and method.learns:
                method.checkpoint_in(args.model_dir, args.load_epoch)
        if cfg.TEST.OOD or cfg.TEST.OOD_SCORES:
            ood.check_settings(cfg)
        if "wandb" in args.report_to:
            check_wandb()
        if cfg.RESUME:
            check_resumes(Path(cfg.RESUME), Path(cfg.OUTPUT_DIR))

    def check_weights(self) -> None:
        """Check that there is a weight file, and fill in its checksum."""
        cfg = self.cfg
        if not cfg.MODEL.BACKBONE.NAME:
            remedy = "name the backbone in the YAML file or by --backbone"
            raise UsageError("MODEL.BACKBONE.NAME is missing", remedy)
        weight_file(cfg.MODEL.BACKBONE.NAME)
        weights = weights_of(cfg)
        cfg.defrost()
        cfg.MODEL.BACKBONE.SHA256 = weights
        cfg.freeze()


def check_resumes(folder: Path, output: Path) -> None:
    """Raise UsageError if a folder to resume has no run; the output folder may have been made."""
    check_folder(folder, "there is no folder", "check --resume")
    kept = (RUN_CONFIG_FILE, "*/checkpoint", "*/model*")
    begun = any(any(folder.glob(name)) for name in kept)
    # Which a script may have made
    if not begun and folder.resolve() != output.resolve():
        remedy = "give the output folder of a run by --resume, or leave it out"
        raise UsageError(f"{folder} holds no run", remedy)


def setup_cfg(args: Namespace) -> CfgNode:
    """The settings of the run that these arguments ask for, frozen."""
    return RunSpec(args).cfg


class UndecodedNode(CfgNode):
    """A group of new keys whose text stays text until it is merged: it may be a number for one
    setting only.
    """

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        return value if isinstance(value, str) else super()._decode_cfg_value(value)


def extend_cfg(cfg: CfgNode, method: str = "") -> None:
    """Add this project's keys to Dassl's. `method` is that of the run: its keys has a section that
    several share.
    """
    add_settings(cfg, SETTINGS)
    # Values for single datasets: see `merge_by_dataset`
    cfg.BY_DATASET = UndecodedNode(new_allowed=True)
    datasets.extend_cfg(cfg)
    trainers.extend_cfg(cfg, method)


def merged(files: Iterable[tuple[str, dict]], method: str) -> CfgNode:
    """Dassl's defaults and this project's, then the content of YAML files
    (`dassl.config.read_config`).
    """
    methods = trainers.methods()
    cfg = defaults(method, *methods.items()).clone()
    kind = methods.get(method)
    for path, tree in files:
        parts = in_section(tree, kind) if kind and kind.published_outside else [tree]
        for part in parts:
            cfg.merge_tree(part, path)
    return cfg


def in_section(tree: dict, method: type[trainers.Method]) -> Iterator[dict]:
    """The content of a YAML file, with settings of the method that are directly below TRAINER in
    its section.
    """
    group = tree.get("TRAINER")
    if isinstance(group, dict):
        group = dict(group)
        for key in group.keys() & set(method.published_outside):
            yield {"TRAINER": {method.section(): {key: group.pop(key)}}}
        tree = tree | {"TRAINER": group}
    yield tree


@cache
def defaults(method: str, *registered: object) -> CfgNode:
    """Dassl's defaults and this project's, not to be changed. The registered methods add settings
    to them.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg, method)
    return cfg


def set_up(cfg: CfgNode, keys: Collection[str], dataset_config_file: str) -> list[str]:
    """Complete the settings of a run, whose `keys` the command line gives; check and freeze them.
    Returns lines about settings that are those of the backbone.

    The method's YAML file may have values for single datasets (`merge_by_dataset`). All errors of
    keys and values are UsageError.
    """
    if cfg.BY_DATASET:
        merge_by_dataset(cfg, keys)
    datasets.set_title(cfg, dataset_config_file)
    method = trainers.methods().get(cfg.TRAINER.NAME)
    of_backbone = follow_backbone(cfg, keys) if method and cfg.MODEL.BACKBONE.NAME else []
    if cfg.DATASET.SENTENCES or cfg.DATASET.SENTENCES_SHA256:
        cfg.DATASET.SENTENCES_SHA256 = datasets.sentences.sentences_file(cfg)[1]
    sha256 = getattr(method, "plugin_sha256", "")
    if cfg.MODEL.PLUGIN_SHA256 not in ("", sha256):
        stated = f"{PLUGIN} {cfg.MODEL.PLUGIN_SHA256:.12}..."
        fault = f"{stated} is not that of the file with {cfg.TRAINER.NAME}"
        raise UsageError(fault, "give that file by --plugin, or leave the checksum out")
    cfg.MODEL.PLUGIN_SHA256 = sha256
    clean_cfg(cfg, method.section() if method else str(cfg.TRAINER.NAME))
    for name in method.published_sections if method else ():
        cfg.pop(name, None)  # other names of the section, which has their values
    cfg.freeze()  # checks the values
    if method:
        method.check_settings(cfg)
    return of_backbone


def default_settings(method: str) -> dict[str, Any]:
    """The default of every setting that a run of this method can have, by its full name."""
    return flatten(defaults(method, *trainers.methods().items()))


def check_chosen(key: str, trainer: str) -> None:
    """Raise UsageError for a setting that no study can have chosen: neither the method nor its
    training has it.
    """
    method = trainers.methods().get(trainer)
    group, _, rest = key.partition(".")
    sections = method.sections() if method else [trainer.upper()]
    if key in RESUMABLE_CHANGES or group not in CHOSEN_GROUPS:
        fault = f"--chosen has {key}, which no study chooses"
        raise UsageError(fault, "set it on the command line")
    if group == "TRAINER" and rest.split(".")[0] not in sections:
        fault = f"--chosen has {key}, which {trainer} does not read"
        raise UsageError(fault, f"choose settings for {trainer}")


@dataclass(frozen=True)
class SelectedSettings:
    """Settings that the trials of a study have chosen (`train.py --chosen`)."""

    settings: Texts  # as words, by key
    choices: list[SelectionRecord]  # a record for each key and list of images


def read_chosen(file: str) -> SelectedSettings:
    """The content of the file of a choice. Raises UsageError if it is missing or damaged."""
    if not Path(file).exists():
        remedy = "tools/study.py run writes it after the trials of its study"
        raise UsageError(f"there is no {file}", remedy, file)
    content = read_json(file, CHOSEN_BYTES)
    try:
        return read(SelectedSettings, content)
    except ValueError as error:
        remedy = "delete it and start its study again (tools/study.py run), which writes it"
        raise UsageError(f"{file} is not a file of chosen settings", remedy, file) from error


def follow_backbone(cfg: CfgNode, given: Collection[str]) -> list[str]:
    """Read images as the backbone was trained to, where the YAML files say what OpenAI's CLIP
    reads; lines for the log.

    Keys that are `given` keep their values, and so do those whose value is neither CLIP's nor the
    backbone's.
    """
    name = cfg.MODEL.BACKBONE.NAME
    try:
        trained = preprocessing(name)
    except UsageError:  # `RunSpec.check` will report it
        return []
    changed = []
    for key, value in trained.items():
        before = cfg.INPUT[key]
        clips = OF_CLIP[key]
        if f"INPUT.{key}" not in given and same(before, clips) and not same(before, value):
            cfg.INPUT[key] = tuple(value) if key == "SIZE" else value
            changed.append(f"{key} {value}")
    if not changed:
        return []
    return [f"Images are read as {name} was trained (INPUT): {', '.join(changed)}"]


def same(one: Any, other: Any) -> bool:
    """Whether two values of INPUT are equal; numbers to six digits."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    if len(one) != len(other):
        return False
    return all(abs(a - b) < 1e-6 for a, b in zip(one, other, strict=True))


def weights_of(cfg: CfgNode) -> str:
    """The SHA-256 of the weights of a method's backbone, in hexadecimal; empty for a trainer of
    another project.

    Raises UsageError if the configuration states another one (MODEL.BACKBONE.SHA256), ClipError for
    a missing file.
    """
    name = cfg.MODEL.BACKBONE.NAME
    stated = cfg.MODEL.BACKBONE.SHA256
    if cfg.TRAINER.NAME not in trainers.methods() or not name:
        return stated
    sha256 = weights_sha256(name)
    if stated and stated.lower() != sha256:
        fault = f"{WEIGHTS} is {stated}, and {name} has {sha256}"
        remedy = f"give the file with that checksum by --backbone, or leave {WEIGHTS} out"
        raise UsageError(fault, remedy)
    return sha256


def ignored(
    cfg: CfgNode, pairs: Iterable[str], config_file: str, trees: Iterable[dict]
) -> list[str]:
    """Lines about settings that this method does not read: of KEY VALUE pairs, and of a YAML file
    for another one.

    `trees` are the content of the YAML file of the method, after that of its bases.
    """
    method = trainers.methods().get(cfg.TRAINER.NAME)
    name = cfg.TRAINER.NAME
    read = {*cfg.TRAINER, *(method.sections() if method else ())}
    keys = [key for key in pairs if key.startswith("TRAINER.") and key.split(".")[1] not in read]
    lines = [f"{name} does not read {', '.join(keys)}"] if keys else []
    if method and config_file and method.Settings.schema().keys() - {"PREC"}:
        return [*sections_of_others(cfg, method, config_file, trees), *lines]
    return lines


def sections_of_others(cfg: CfgNode, method: Any, file: str, trees: Iterable[dict]) -> list[str]:
    """A line about values in the section of another method, which this one has in its own."""
    name = cfg.TRAINER.NAME
    if method.config_folder and Path(file).absolute().parent.name == method.config_folder:
        return []  # zero-shot CLIP reads the files of CoOp
    sections: dict[str, Any] = {}
    for tree in trees:
        sections |= tree.get("TRAINER", {})
    if not sections.keys().isdisjoint(method.sections()):
        return []
    now = cfg.TRAINER[method.section()]
    for section, values in sections.items():
        others = differing(now, values) if isinstance(values, dict) else []
        if others:
            fault = f"{file} sets TRAINER.{section}, but {name} reads TRAINER.{method.section()}"
            return [f"{fault} ({'; '.join(others)}): rename the section if you mean these"]
    return []


def differing(now: CfgNode, values: dict) -> list[str]:
    """The values that a section would have otherwise, as text."""
    keys = [key for key in values if now.get(key, values[key]) != values[key]]
    return [f"{key} {now[key]}, not {values[key]}" for key in keys]


def merge_by_dataset(cfg: CfgNode, given: Collection[str]) -> None:
    """Merge what a YAML file sets under BY_DATASET for the dataset of this run.

    BY_DATASET has the form {dataset: {key: value}}, for all runs; below a key `base2new` the same,
    for runs on base or new classes. Afterwards BY_DATASET is {key: value}, what was merged, for the
    log and for config.yaml.

    Keys that the command line has given keep their values.
    """
    table = {key: value for key, value in cfg.BY_DATASET.items() if "." not in key}
    if not table:  # the config.yaml of an earlier run has keys
        return
    of_halves = table.pop("base2new", {})
    values = values_for(cfg.DATASET.NAME, table, "BY_DATASET")
    of_half = values_for(cfg.DATASET.NAME, of_halves, "BY_DATASET.base2new")
    values |= of_half if cfg.DATASET.SUBSAMPLE_CLASSES != "all" else {}
    merged = {key: value for key, value in values.items() if key not in given}
    cfg.BY_DATASET = CfgNode()  # a closed node: merged values must not add keys here
    for key, value in merged.items():
        cfg.merge_from_list([key, value])
    now = {
        key: list(value) if isinstance(value, list | tuple) else value
        for key, value in flatten(cfg).items()
    }
    cfg.BY_DATASET = CfgNode({key: now[key] for key in merged}, new_allowed=True)


def values_for(dataset: str, table: object, where: str) -> dict:
    """The values of one dataset in a table {dataset: {key: value}}, all of whose names are
    checked.
    """
    if not isinstance(table, dict):
        raise UsageError(f"{where} is {table!r}", "give DATASET: {KEY: VALUE}")
    for name, values in table.items():
        check_name(name, DATASET_REGISTRY.registered_names(), "dataset of BY_DATASET")
        if not isinstance(values, dict):
            raise UsageError(f"{where}.{name} is {values!r}", "give KEY: VALUE")
    return flatten(table.get(dataset, {}))
