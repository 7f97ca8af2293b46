"""The methods, one file each. Importing this package puts every one of them into Dassl's TRAINER_REGISTRY.

A method of one's own is a file here: a `PromptTrainer` with its settings in `defaults`; nothing else is to be touched.
"""

from importlib import import_module
from pkgutil import iter_modules

from .base import PromptError, PromptTrainer, extend_cfg

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

__all__ = ["PromptError", "PromptTrainer", "extend_cfg"]
