"""Methods over other methods, such as `DePT+MPL`."""

from collections.abc import Callable

from dassl.engine import TRAINER_REGISTRY

from .method import Method

Maker = Callable[[type[Method]], type[Method] | None]
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


def registered() -> dict[str, type[Method]]:
    """The registered methods by name."""
    return {
        name: kind
        for name, kind in TRAINER_REGISTRY._obj_map.items()
        if isinstance(kind, type) and issubclass(kind, Method)
    }


def register_plugins() -> None:
    """Register each plug-in over each method that it works with."""
    for name, make in MAKERS.items():
        for base, method in registered().items():
            exists = f"{name}+{base}" in TRAINER_REGISTRY.registered_names()
            if not exists and "+" not in base and (made := make(method)):
                own = vars(made).get("config_folder", "")
                made.config_folder = own or method.config_folder or base
                if "section" not in vars(made):
                    made.section = method.section  # type: ignore[method-assign]
                made.__name__ = made.__qualname__ = f"{name}+{base}"
                TRAINER_REGISTRY.register()(made)
