"""Methods over other methods, such as `DePT+MPL`."""

from collections.abc import Callable

from dassl.engine import TRAINER_REGISTRY

from .trainer import PromptTrainer

Maker = Callable[[type[PromptTrainer]], type[PromptTrainer] | None]
MAKERS: dict[str, Maker] = {}


def plugin(name: str) -> Callable[[Maker], Maker]:
    """Register a function that makes a method `<name>+<method>` of a method, or returns None if it
    cannot.

    It is called once for each other method, after all files of methods are imported. Unless the
    class that it returns says otherwise, its settings are in the section of that method, and its
    YAML files in the folder of that method.
    """

    def register(maker: Maker) -> Maker:
        MAKERS[name] = maker
        return maker

    return register


def registered() -> dict[str, type[PromptTrainer]]:
    """The registered methods by name."""
    entries = TRAINER_REGISTRY._obj_map.items()
    return {
        name: kind
        for name, kind in entries
        if isinstance(kind, type) and issubclass(kind, PromptTrainer)
    }


def register_plugins(methods: dict[str, type[PromptTrainer]]) -> None:
    """Register each plug-in over each of these methods that it works with."""
    for name, make in MAKERS.items():
        for base, method in methods.items():
            exists = f"{name}+{base}" in TRAINER_REGISTRY.registered_names()
            if not exists and "+" not in base and (made := make(method)):
                if made.config_folder == made.__name__:  # nothing was given
                    made.config_folder = method.config_folder
                if "section" not in vars(made):
                    made.section = method.section  # type: ignore[method-assign]
                made.__name__ = made.__qualname__ = f"{name}+{base}"
                TRAINER_REGISTRY.register()(made)
