"""Configuration: yacs nodes, with errors that name the closest known key."""

from .defaults import _C as cfg_default
from .node import CfgNode, flatten, read_config

__all__ = ["CfgNode", "clean_cfg", "flatten", "get_cfg_default", "read_config"]


def get_cfg_default():
    """A new copy of the default configuration (see :mod:`dassl.config.defaults`)."""
    return cfg_default.clone()


def clean_cfg(cfg, trainer):
    """Remove the sections of other trainers from ``cfg.TRAINER``: all except the name of this one
    in upper case.
    """
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]
