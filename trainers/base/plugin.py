"""Methods over other methods, such as `DePT+MPL`."""

from collections.abc import Callable

from dassl.engine import TRAINER_REGISTRY

from common.errors import UsageError

from .method import Method
from .trainer import MethodTrainer

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
    """The registered methods by name. The trainer of a method takes its place in the registry, for
    Dassl's `build_trainer`.
    """
    methods = {}
    for name, kind in TRAINER_REGISTRY._obj_map.items():
        if isinstance(kind, type) and issubclass(kind, Method):
            check_hooks(kind)
            if "config_folder" not in vars(kind):
                kind.config_folder = kind.__name__
            facts = {"method_class": kind, "__doc__": kind.__doc__}
            TRAINER_REGISTRY._obj_map[name] = type(kind.__name__, (MethodTrainer,), facts)
            methods[name] = kind
        elif isinstance(kind, type) and issubclass(kind, MethodTrainer):
            methods[name] = kind.method_class
    return methods


def check_hooks(method: type[Method]) -> None:
    """Raise UsageError if a method defines a hook of Dassl's trainers, which nothing would call."""
    for parent in method.__mro__:
        for name in vars(parent):
            if hasattr(MethodTrainer, name) and not hasattr(Method, name):
                fault = f"{method.__name__} defines {name}, a hook of Dassl's trainers alone"
                raise UsageError(fault, "use the hooks of a method (docs/add_a_method.md)")


def register_plugins() -> None:
    """Register each plug-in over each method that it works with."""
    for name, make in MAKERS.items():
        for base, method in registered().items():
            exists = f"{name}+{base}" in TRAINER_REGISTRY.registered_names()
            if not exists and "+" not in base and (made := make(method)):
                if "config_folder" not in vars(made):
                    made.config_folder = method.config_folder
                if "section" not in vars(made):
                    made.section = method.section  # type: ignore[method-assign]
                made.__name__ = made.__qualname__ = f"{name}+{base}"
                TRAINER_REGISTRY.register()(made)
    registered()
