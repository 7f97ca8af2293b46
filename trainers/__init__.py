"""The methods, one file each. Importing this package puts every one of them into Dassl's TRAINER_REGISTRY.

A new method is a file here, with a `PromptTrainer` (docs/methods.md), and a YAML file in configs/trainers/<its name>/.
Nothing else names the methods: `methods()` reads the registry.
"""

from functools import reduce
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
        chosen: the method that will read it. Where several methods share a section, it has this one's keys; its section
            is also there under the names that its published YAML files use, as the same node.
    """
    for name, method in sorted(methods().items(), key=lambda item: item[0] != chosen):
        section = cfg.TRAINER.setdefault(method.section(), CfgNode(method.Settings.cfg_defaults()))
        for published in method.published_sections if name == chosen else ():
            group, _, key = published.rpartition(".")
            (cfg.TRAINER if group else cfg)[key] = section


def accept_any_type(cfg: CfgNode, key: str) -> None:
    """Forget the value of a key that takes values of several types: yacs holds a key to the type of its value."""
    *groups, name = key.split(".")
    node = reduce(lambda node, group: node.get(group) if isinstance(node, CfgNode) else None, groups, cfg)
    for method in methods().values():
        own = cfg.TRAINER.get(method.section())
        if own is not None and own is node and name in method.Settings.flexible():
            own[name] = None


def fill_defaults(cfg: CfgNode, chosen: str = "") -> None:
    """Give the keys of `accept_any_type` their defaults where nothing has set them."""
    for method in sorted(methods().values(), key=lambda method: method.__name__ != chosen):
        node, defaults = cfg.TRAINER.get(method.section(), {}), method.Settings()
        for key in method.Settings.flexible():
            if key in node and node[key] is None:
                node[key] = getattr(defaults, key)


__all__ = ["PromptTrainer", "accept_any_type", "extend_cfg", "fill_defaults", "methods"]
