"""Methods over other methods, such as `DePT+MPL`; and methods in a file of the user, `--plugin`: it
is code, and runs because the user's command names it.

No checkpoint, YAML file or study can name such a file. Its checksum is kept with what it has
trained.
"""

import sys
import traceback
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from dassl.engine import TRAINER_REGISTRY

from common.errors import UsageError, one_line
from common.renaming import of_user
from common.text import read_bytes

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


LARGEST = 1 << 20  # bytes
LOADED: dict[Path, str] = {}  # the checksum of each file that was run


def load_method_file(path: Path) -> None:
    """Run a file that registers methods. A file that this process has run already is not run again.

    Raises UsageError if it is missing, not Python or has another error, it registers nothing, or a
    name that exists; or it has changed since this process has run it.
    """
    path = path.expanduser().resolve()
    content = read_bytes(path, LARGEST)
    checksum = sha256(content).hexdigest()
    if LOADED.get(path) == checksum:
        return
    if path in LOADED:
        raise UsageError(
            f"{path} has changed since this command has started", "start the command again", path
        )
    before = dict(TRAINER_REGISTRY._obj_map)
    run_file(path, content, f"plugin_{checksum[:16]}")
    for key in TRAINER_REGISTRY._obj_map.keys() - before.keys():
        kind = TRAINER_REGISTRY.get(key)
        kind.plugin_file = str(path)
        kind.plugin_sha256 = checksum
    LOADED[path] = checksum


def run_file(path: Path, content: bytes, name: str) -> None:
    """Run the content of a file as a module of this name; if it fails, nothing is registered."""
    before = dict(TRAINER_REGISTRY._obj_map)
    makers = dict(MAKERS)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses look for the module of a class
    try:
        # The hashed text, not a compiled file beside it
        exec(compile(of_user(content), str(path), "exec"), vars(module))
        register_plugins()
        check_names(path, before, makers)
    except BaseException as error:
        del sys.modules[name]
        TRAINER_REGISTRY._obj_map.clear()
        TRAINER_REGISTRY._obj_map.update(before)
        MAKERS.clear()
        MAKERS.update(makers)
        if isinstance(error, UsageError) or not isinstance(error, Exception | SystemExit):
            raise
        fault = f"{path} cannot be used ({reason(error, path)})"
        raise UsageError(fault, "correct it", path) from error


def check_names(path: Path, before: Mapping[str, object], makers: Mapping[str, object]) -> None:
    """Raise UsageError unless a file has registered names, and all of them are new."""
    new: dict[str, object] = {
        **TRAINER_REGISTRY._obj_map,
        **{f"{name}+": maker for name, maker in MAKERS.items()},
    }
    old: dict[str, object] = {**before, **{f"{name}+": maker for name, maker in makers.items()}}
    if replaced := [name for name in old if new[name] is not old[name]]:
        raise UsageError(
            f"{path} registers {replaced[0]}, which exists already", "choose another name", path
        )
    if len(new) == len(old):
        remedy = "write @TRAINER_REGISTRY.register() above the class of the method"
        raise UsageError(f"{path} registers no method", remedy, path)


def reason(error: BaseException, path: Path) -> str:
    """An error of a file in one line, with its last line in this file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    number = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = error.msg if isinstance(error, SyntaxError) else one_line(error)
    return f"{type(error).__name__}: {text}" + (f", line {number}" if number else "")
