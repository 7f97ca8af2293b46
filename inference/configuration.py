"""The part of a configuration that predictions depend on: a method's settings, the images, dataset and backbone."""

from pathlib import Path

from dassl.config import get_cfg_default
from yacs.config import CfgNode

import datasets
import trainers
from common.errors import choose

SECTIONS = ("DATASET", "INPUT", "MODEL", "TRAINER")


def defaults(method: str, where: Path | None = None) -> CfgNode:
    """The configuration of a method, to be merged with values; it accepts any key of training.

    Raises:
        UsageError: the method, which the file `where` names, is unknown.
    """
    choose(method, trainers.methods(), "method", where)
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    trainers.extend_cfg(cfg, method)
    cfg.set_new_allowed(True)
    for section in (cfg.INPUT, cfg.TRAINER[trainers.methods()[method].section()]):
        section.set_new_allowed(False)
    cfg.TRAINER.NAME = method
    return cfg


def checked(cfg: CfgNode, backbone: str = "") -> CfgNode:
    """The sections above of a merged configuration; a `backbone`, if it is given, replaces its own.

    Raises:
        UsageError: a value is out of range.
    """
    for section in set(cfg) - set(SECTIONS):
        del cfg[section]
    cfg.MODEL.BACKBONE.NAME = backbone or cfg.MODEL.BACKBONE.NAME
    _ = trainers.methods()[cfg.TRAINER.NAME].settings_of(cfg)
    cfg.freeze()  # which checks Dassl's keys
    return cfg


def method_of(file: Path) -> str:
    """The name of the method in the config.yaml of a run; UsageError if the file is damaged."""
    cfg = get_cfg_default()
    cfg.set_new_allowed(True)
    cfg.merge_from_file(str(file))
    return cfg.TRAINER.NAME
