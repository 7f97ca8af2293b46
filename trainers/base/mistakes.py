"""Mistakes in the code of a method, with its name, its file and what to write instead."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

from torch import Tensor

from clip import Edit
from common.errors import UsageError

from .method_file import reason

LIKENESS = 0.85  # of the name of a method to that of a hook, with which it is confused


@contextmanager
def named(kind: type) -> Iterator[None]:
    """Raise an error of a method with its name and its file, unless it is a failed check."""
    try:
        yield
    except AssertionError:
        raise
    except UsageError as error:
        if kind.__name__.lower() in str(error).lower():
            raise
        fault = f"{kind.__name__} of {file_of(kind)}: {error.fault}"
        raise UsageError(fault, error.remedy, error.where) from error
    except Exception as error:
        fault = f"{kind.__name__} of {file_of(kind)} fails: {reason(error, file_of(kind))}"
        raise AssertionError(fault) from error


def file_of(kind: type) -> Path:
    """The file that defines a class."""
    return Path(getattr(sys.modules[kind.__module__], "__file__", None) or kind.__module__)


def check_settings(kind: Any) -> None:
    """Raise AssertionError if the settings of a method lack those of its base."""
    for base in kind.__mro__[1:]:
        needed = vars(base).get("Settings")
        fault = f"{kind.__name__}.Settings of {file_of(kind)} is {kind.Settings.__name__}"
        assert needed is None or issubclass(kind.Settings, needed), (
            f"{fault}: derive it from {needed.__name__}, as it has the settings of {base.__name__}"
        )


def check_hooks(method: Any) -> None:
    """Raise AssertionError if a class in the file of a method defines a name that is nearly that of
    a hook, and that nothing else in the file mentions.
    """
    file = file_of(type(method))
    source = file.read_text(encoding="utf-8")
    learner = method.model.prompt_learner
    for one in (method, method.model, learner):
        for kind in type(one).__mro__:
            if file_of(kind) == file:
                check_names_of(kind, source)


def check_names_of(kind: type, source: str) -> None:
    hooks = {name for base in kind.__mro__[1:] for name in vars(base)}
    for name in vars(kind).keys() - hooks:
        is_mentioned = len(re.findall(rf"\b{name}\b", source)) > 1
        if is_mentioned or not callable(vars(kind)[name]):
            continue
        meant = get_close_matches(name, hooks - vars(kind).keys(), 1, LIKENESS)
        fault = f"{kind.__name__} of {file_of(kind)} defines {name}, which nothing calls"
        assert not meant, f"{fault}: did you mean {meant[0]}?"


def check_schedule(learner: Any) -> None:
    """Raise AssertionError if the prompts of the image tower are not a schedule."""
    for entry in learner.vision():
        fault = f"{type(learner).__name__}.vision returns a {type(entry).__name__} for a layer"
        assert isinstance(entry, Edit), f"{fault}: return a list of clip.Edit(remove, add)"


def with_parts(loss: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The loss of a method, which raises AssertionError if it returns no parts."""

    @wraps(loss)
    def checked(*arguments: Any) -> Any:
        result = loss(*arguments)
        is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
        fault = f"{name}.loss returns a {type(result).__name__}"
        assert is_pair, f"{fault}: return the loss and a dict of parts to log, which may be empty"
        return result

    return checked


def watch_gradients(method: Any) -> set[str]:
    """The names of learned parameters, from which those that get a gradient disappear."""
    without: set[str] = set()
    for name, parameter in method.model.named_parameters():

        def seen(_: Tensor, name: str = name) -> None:
            without.discard(name)

        if parameter.requires_grad:
            without.add(name)
            parameter.register_hook(seen)
    return without
