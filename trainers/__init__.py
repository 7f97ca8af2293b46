"""The methods, one file each; `base/` has what they share. Importing this package registers all of
them with Dassl.

A new method is a file here (docs/add_a_method.md), and a YAML file in configs/trainers/<its name>/.
Nothing else needs to name a new method: `methods()` reads the registry.
"""

import sys
import traceback
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from yacs.config import CfgNode

from common.errors import one_line
from common.schema import add_settings

from .base import Method, compat
from .base.plugin import register_plugins
from .base.plugin import registered as methods
from .base.trainer import MethodTrainer
from .vision_probe import Ensemble, KernelEnsemble, KernelProbe, Linear, VisionProbe


def import_files(folders: Iterable[str], package: str) -> None:
    """Import the files of a package. For a broken one it prints the reason: somebody may be writing
    it.
    """
    for module in iter_modules(folders):
        try:
            import_module(f"{package}.{module.name}")
        except Exception as error:  # of any kind: it is code
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = (
                ""
                if isinstance(error, SyntaxError)
                else f" ({Path(frame.filename).name}, line {frame.lineno})"
            )
            reason = f"{type(error).__name__}: {one_line(error)}{where}"
            print(f"{package}/{module.name}.py is left out: {reason}", file=sys.stderr)


import_files(__path__, __name__)


OF_FIT: dict[str, type[Method]] = {
    one.__name__: one for one in (Ensemble, KernelEnsemble, KernelProbe, Linear, VisionProbe)
}


def predicting() -> dict[str, type[Method]]:
    """The methods of models: those that a run trains, and those that only tools/fit.py makes."""
    return {**OF_FIT, **methods()}


@cache
def has_right_settings(method: type[Method]) -> bool:
    """Whether the settings of a method accept their own defaults, each by itself."""
    try:
        settings = method.Settings.with_defaults().values()
        return all(accepts.accepts(default) for default, accepts in settings)
    except Exception:  # of any kind: it is code
        return False


def extend_cfg(cfg: CfgNode, chosen: str = "") -> None:
    """Add the settings of every method to a Dassl configuration, as TRAINER.<NAME IN CAPITALS>.

    Args:
        cfg: changed in place.
        chosen: the method that will read it. Where several methods share a section, it has this
            one's keys; its section is also there under the names that its published YAML files use,
            as the same node. Other methods with wrong settings are left out.
    """
    if "CACHE" not in cfg:
        compat.add_settings(cfg)
    known = predicting() if chosen in OF_FIT else methods()
    for name, method in sorted(known.items(), key=lambda item: item[0] != chosen):
        kind: Any = method
        if chosen not in ("", name) and not has_right_settings(kind):
            continue  # of a method that is being written
        section = method.section()
        if section not in cfg.TRAINER or not chosen:
            method.Settings.add_to(cfg, section)
        for key, setting in method.published_keys.items():
            group, _, name_of = key.rpartition(".")
            if name_of not in cfg[group]:
                add_settings(cfg, {key: setting})
        for published in method.published_sections if name == chosen else ():
            group, _, key = published.rpartition(".")
            (cfg.TRAINER if group else cfg)[key] = cfg.TRAINER[section]


register_plugins()
