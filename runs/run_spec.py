"""The request for one run: arguments and YAML files, read and checked once.

Checks that need no torch come first, because its import takes seconds.
"""

import os
from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import Any

from dassl.config import flatten, get_cfg_default, read_config
from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

import datasets
from common.errors import UsageError, check_name
from common.files import check_folder
from common.run_files import RESULTS_FILE, RUN_CONFIG_FILE
from configs.methods import IN_A_FILE

from .arguments import OPTIONS, check_given

# Settings that a run cannot do without
NAMES = (
    "TRAINER.NAME",
    "DATASET.NAME",
    "DATASET.ROOT",
    "OUTPUT_DIR",
)


class RunSpec:
    """The request for one run, from the options of train.py. Raises UsageError for a wrong YAML
    file or setting.
    """

    def __init__(self, args: Namespace):
        self.args = args
        named = {
            "--dataset-config-file": args.dataset_config_file,
            "--config-file": args.config_file,
        }
        # By option, the content of a YAML file after that of its bases: [(path, {key: value})].
        self.files = {option: read_config(file) for option, file in named.items() if file}
        self.pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
        options = {key: getattr(args, name) for key, name in OPTIONS.items()}
        # The settings that options of the command line give
        self.options = {key: x for key, x in options.items() if x not in (None, "", [], -1)}

    def check_places(self) -> None:
        """Check that all options are given, and that the folders that they name exist. It needs no
        torch.
        """
        folder = self.pairs.get("OUTPUT_DIR", self.args.output_dir)
        if self.args.skip_finished and folder and Path(folder, RESULTS_FILE).is_file():
            return
        if self.args.model_dir:
            remedy = (
                "train first, or check --model-dir (scripts: SEED, SHOTS, CFG, OUT and, for "
                "xd_test.sh, SOURCE)"
            )
            check_folder(Path(self.args.model_dir), "no trained prompts in", remedy)
        cfg = get_cfg_default()
        datasets.extend_cfg(cfg)
        cfg.set_new_allowed(True)  # the keys of methods are not known here
        for content in self.files.values():
            for path, tree in content:
                cfg.merge_tree(tree, path)
        given = self.options | self.pairs
        cfg.merge_from_list(
            [word for name in NAMES if name in given for word in (name, given[name])]
        )
        # A YAML file without a name of a dataset may have an unknown key, which is reported later.
        check_given(
            self.args, cfg.TRAINER.NAME, self.args.dataset_config_file or cfg.DATASET.NAME, cfg
        )
        registered = cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
        kind: Any = DATASET_REGISTRY.get(cfg.DATASET.NAME) if registered else None
        if getattr(kind, "is_synthetic", True):  # datasets of other projects do not say it
            return
        if not Path(os.path.expanduser(cfg.DATASET.ROOT), kind.dataset_dir).is_dir():
            kind(cfg, images=False)  # raises its own error

    @property
    def is_finished(self) -> bool:
        """Whether there are results of this run, or of another one in its folder, and
        --skip-finished is given.
        """
        return self.args.skip_finished and Path(self.cfg.OUTPUT_DIR, RESULTS_FILE).is_file()

    @cached_property
    def cfg(self) -> CfgNode:
        """All settings, frozen."""
        from . import configuration

        content = [pair for pairs in self.files.values() for pair in pairs]
        cfg = configuration.merged(content, self.args.trainer or self.pairs.get("TRAINER.NAME", ""))
        before = flatten(cfg)
        # The settings that the trials of a study have chosen
        self.chosen = configuration.SelectedSettings({}, [])
        if self.args.chosen:
            self.chosen = configuration.read_chosen(self.args.chosen)
        given = configuration.GivenOptions(
            self.options,
            self.args.opts,
            self.pairs,
            self.chosen.settings,
            self.args.config_file,
            self.args.dataset_config_file,
        )
        # Lines about settings that are those of the backbone, and that the method does not read
        self.of_backbone = configuration.set_up(cfg, given)
        trees = [tree for _, tree in self.files.get("--config-file", ())]
        self.ignored = configuration.ignored(cfg, given, trees)
        now = flatten(cfg)
        changed = [key for key in now if key in before and before[key] != now[key]]
        # {key: (value in the YAML files, value in the run)}
        self.changed = {
            key: (before[key], now[key]) for key in changed if not key.startswith("BY_DATASET.")
        }
        return cfg

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

        Raises UsageError if an argument is missing, or the trainer, the dataset, the backbone, a
        package or the prompts to test do not exist.
        """
        from dassl.engine import TRAINER_REGISTRY

        import trainers

        from . import ood
        from .trackers import check_trackers

        args = self.args
        cfg = self.cfg
        if self.is_finished:
            return
        check_given(args, cfg.TRAINER.NAME, cfg.DATASET.NAME, cfg)
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
        if args.report_to:
            check_trackers(args.report_to)
        if cfg.RESUME:
            check_resumes(Path(cfg.RESUME), Path(cfg.OUTPUT_DIR))

    def check_weights(self) -> None:
        """Check that there is a weight file, and fill in its checksum."""
        from clip.backbone import weight_file

        from .configuration import weights_of

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
