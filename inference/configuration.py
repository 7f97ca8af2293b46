"""The part of a configuration that predictions depend on: a method's settings, the images, dataset and backbone."""

from pathlib import Path

from dassl.config import get_cfg_default
from yacs.config import CfgNode

import datasets
import trainers
from common.errors import choose

from .artefact import INPUT, Description

SECTIONS = ("DATASET", "INPUT", "MODEL", "TRAINER")


def of_description(description: Description, backbone: str) -> CfgNode:
    """The configuration of learned prompts on a backbone, given by its name or file.

    Raises:
        UsageError: the method or one of its keys is unknown, or a value has another type or is out of range.
    """
    cfg = defaults(description.method)
    section = trainers.methods()[description.method].section()
    values = {f"TRAINER.{section}.{key}": value for key, value in description.settings.items()}
    values |= {f"INPUT.{key}": value for key, value in description.input.items() if key in INPUT}
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    cfg.DATASET.NAME, cfg.DATASET.TEMPLATE = description.dataset, description.template
    return checked(cfg, backbone)


def of_file(method: str, file: Path, backbone: str) -> CfgNode:
    """The configuration in a YAML file; what it says about training is not read.

    Args:
        method: name of the method.
        file: the config.yaml of a run, or a published YAML file of the method.
        backbone: its name or file; if it is empty, the YAML file says it.

    Raises:
        UsageError: as for `of_description`, or the file cannot be read.
    """
    cfg = defaults(method, file)
    cfg.merge_from_file(str(file))
    return checked(cfg, backbone)


def defaults(method: str, file: Path | None = None) -> CfgNode:
    """Dassl's configuration with the settings of a method, which accepts any key of training."""
    choose(method, trainers.methods(), "method", file)
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    trainers.extend_cfg(cfg, method)
    cfg.set_new_allowed(True)
    for section in (cfg.INPUT, cfg.TRAINER[trainers.methods()[method].section()]):
        section.set_new_allowed(False)
    cfg.TRAINER.NAME = method
    return cfg


def checked(cfg: CfgNode, backbone: str) -> CfgNode:
    """The sections above of a configuration, with their values checked."""
    method = cfg.TRAINER.NAME
    trainers.fill_defaults(cfg, method)
    for section in set(cfg) - set(SECTIONS):
        del cfg[section]
    cfg.MODEL.BACKBONE.NAME = backbone or cfg.MODEL.BACKBONE.NAME
    _ = trainers.methods()[method].settings_of(cfg)
    cfg.freeze()  # which checks Dassl's keys
    return cfg


def method_of(file: Path) -> str:
    """The name of the method in the config.yaml of a run; UsageError if the file is damaged."""
    cfg = get_cfg_default()
    cfg.set_new_allowed(True)
    cfg.merge_from_file(str(file))
    return cfg.TRAINER.NAME
