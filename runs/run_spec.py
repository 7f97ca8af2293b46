"""The request for one run: arguments and YAML files, read and checked once."""

from argparse import Namespace
from functools import reduce
from operator import getitem
from pathlib import Path

from dassl.config import flatten
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from yacs.config import CfgNode

import trainers
from clip.backbone import weight_file
from common.errors import UsageError, check_name
from common.files import RESULTS_FILE, RUN_CONFIG_FILE, check_folder
from configs.methods import IN_A_FILE

from . import configuration, ood
from .arguments import read_files, settings_of
from .trackers import check_wandb


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
        self.chosen = configuration.SelectedSettings({}, [])
        if args.chosen:
            self.chosen = configuration.read_chosen(args.chosen)
        content = [pair for pairs in self.files.values() for pair in pairs]
        cfg = configuration.merged(content, args.trainer or self.pairs.get("TRAINER.NAME", ""))
        before = flatten(cfg)
        self.merge_given(cfg)
        keys = [*self.options, *self.pairs, *self.chosen.settings]
        of_backbone = configuration.set_up(cfg, keys, args.dataset_config_file)
        trees = [tree for _, tree in self.files.get("--config-file", ())]
        unread = configuration.ignored(cfg, self.pairs, args.config_file, trees)
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
            configuration.check_chosen(key, cfg.TRAINER.NAME)
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
        weights = configuration.weights_of(cfg)
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
