"""The methods, one file each. Importing this package puts every one of them into Dassl's TRAINER_REGISTRY.

A new method is a file here, with a `PromptTrainer` (docs/methods.md), and a YAML file in configs/trainers/<its name>/.
Nothing else names the methods: `methods()` reads the registry.
"""

from importlib import import_module
from pkgutil import iter_modules

from dassl.engine import TRAINER_REGISTRY
from yacs.config import CfgNode

from .base import PromptTrainer

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")


def methods() -> dict[str, type[PromptTrainer]]:
    """The registered methods by name."""
    found = ((name, TRAINER_REGISTRY.get(name)) for name in TRAINER_REGISTRY.registered_names())
    return {name: method for name, method in found if isinstance(method, type) and issubclass(method, PromptTrainer)}


def extend_cfg(cfg: CfgNode, chosen: str = "") -> None:
    """Add the settings of every method to a Dassl configuration, as TRAINER.<NAME IN CAPITALS>.

    Args:
        cfg: changed in place.
        chosen: the method that will read it. Where several methods share a section, it has this one's keys.
    """
    found = methods()
    for method in sorted(found.values(), key=lambda method: method.__name__ != chosen):
        if method.section() not in cfg.TRAINER:
            cfg.TRAINER[method.section()] = CfgNode(method.Settings.cfg_defaults())


def per_layer_keys() -> set[str]:
    """The keys that may be one number or a list of numbers."""
    return {f"TRAINER.{m.section()}.{key}" for m in methods().values() for key in m.Settings.flexible()}


def fill_defaults(cfg: CfgNode, chosen: str = "") -> None:
    """Give the keys of `per_layer_keys` their defaults where nothing has set them."""
    for method in sorted(methods().values(), key=lambda method: method.__name__ != chosen):
        node, defaults = cfg.TRAINER.get(method.section(), {}), method.Settings()
        for key in method.Settings.flexible():
            if key in node and node[key] is None:
                node[key] = getattr(defaults, key)


__all__ = ["PromptTrainer", "extend_cfg", "fill_defaults", "methods", "per_layer_keys"]
