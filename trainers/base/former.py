"""Import paths of the version before, for one version."""

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

MOVED = {"classifier": "inference.classifier"} | {
    name: f"trainers.base.{name}" for name in ("prompted", "prompts", "settings", "teacher")
}


class Former(ModuleType):
    """A module that says once for each name where the name is now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        place = MOVED[self.__name__.removeprefix("trainers.")]
        warnings.warn(f"{self.__name__} is now {place}: import {name} from there", DeprecationWarning, stacklevel=2)
        return getattr(import_module(place), name)


def keep_former_paths() -> None:
    """Let `trainers.settings` and the other former names be imported."""
    for name in MOVED:
        sys.modules[f"trainers.{name}"] = Former(f"trainers.{name}")
