"""Configuration: yacs nodes, with errors that name the closest known key."""

from .defaults import clean_cfg, get_cfg_default
from .node import CfgNode, flatten, read_config

__all__ = ["CfgNode", "clean_cfg", "flatten", "get_cfg_default", "read_config"]
