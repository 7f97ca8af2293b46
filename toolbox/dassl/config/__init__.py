"""Configuration: yacs nodes, with errors that name the closest known key."""

from .defaults import _C as cfg_default
from .node import CfgNode

__all__ = ["CfgNode", "clean_cfg", "get_cfg_default"]


def get_cfg_default():
    """Return a new copy of the default configuration (see :mod:`dassl.config.defaults`)."""
    return cfg_default.clone()


def clean_cfg(cfg, trainer):
    """Remove the options of other trainers, so that a printed or dumped config shows only the relevant ones.

    Args:
        cfg (CfgNode): changed in place.
        trainer (str): name of the trainer; the node of ``cfg.TRAINER`` with that name in upper case is kept.
    """
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]
