"""Settings: the default of each, the values that it accepts, and its meaning. Configurations and
pages read these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from reprlib import Repr
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from .names import CONTROL

LONGEST = 4096  # characters of a text, as of a path
MOST = 1000  # values of a list
_short = Repr()
_short.maxstring = _short.maxother = 80
shown = _short.repr  # of values in messages: one line, not a megabyte


@dataclass(frozen=True)
class Accepts:
    """The values that a setting accepts."""

    # bool, int, float (integers too), str, list[...], tuple[..., ...], Literal[...], or a union of
    # these
    kind: Any
    low: float = -1_000_000  # the least number, in a list too
    high: float = 1_000_000  # the largest; the default keeps a typing error from filling the memory
    note: str = ""  # what else holds, in words
    also: Callable[[Any], object] | None = None  # what else holds; called with a value of the kind
    most: int = MOST  # values of a list

    def __deepcopy__(self, memo: dict) -> "Accepts":
        return self  # it cannot change, and each run copies the limits of all settings

    def accepts(self, value: Any) -> bool:
        return self._is_of_kind(value) and (self.also is None or bool(self.also(value)))

    def _is_of_kind(self, value: Any) -> bool:
        kind = get_origin(self.kind) or self.kind
        inner = get_args(self.kind)
        if kind is Literal:
            return value in inner
        if kind in (Union, UnionType):
            return any(self._part(part).accepts(value) for part in inner)
        if kind in (list, tuple):
            if not isinstance(value, list | tuple) or len(value) > self.most:
                return False
            if kind is tuple and Ellipsis not in inner and len(value) != len(inner):
                return False
            item = self._part((*inner, int | float | str)[0])
            return all(map(item.accepts, value))
        if kind is str:
            return isinstance(value, str) and len(value) <= LONGEST and not CONTROL.search(value)
        if kind in (int, float):
            # Not True, and not NaN
            return type(value) in (int, kind) and self.low <= value <= self.high
        return kind is Any or isinstance(value, kind)

    def __str__(self) -> str:
        kind = get_origin(self.kind) or self.kind
        inner = get_args(self.kind)
        if kind is Literal:
            text = f"one of {', '.join(str(value) or repr('') for value in inner)}"
        elif kind in (Union, UnionType):
            parts = [part for part in inner if not (part is int and float in inner)]
            text = " or ".join(str(self._part(part)) for part in parts)
        elif kind in (list, tuple):
            item = self._part((*inner, int | float | str)[0])
            is_pair = kind is tuple and Ellipsis not in inner
            number = len(inner) if is_pair else f"at most {self.most:,}"
            text = f"a list of {number} values, each {item}"
        elif kind in (int, float):
            text = (
                f"{'an integer' if kind is int else 'a number'} from {self.low:,} to {self.high:,}"
            )
        else:
            texts = {
                str: f"text of at most {LONGEST:,} characters, without control characters",
                bool: "True or False",
            }
            text = texts.get(kind) or kind.__name__
        return f"{text} ({self.note})" if self.note else text

    def _part(self, kind: Any) -> "Accepts":
        return Accepts(kind, self.low, self.high, most=self.most)


FLAG = Accepts(bool)
TEXT = Accepts(str)
TEXTS = Accepts(list[str])


def add_settings(cfg: Any, settings: Mapping[str, tuple]) -> None:
    """Add settings to a configuration.

    Args:
        cfg: Dassl's configuration, changed in place; it has the groups of the settings.
        settings: (default, what it accepts, perhaps its meaning), by full names. The toolbox's node
            checks what a setting accepts. A plain node of yacs holds a setting to the type of its
            value, except that None may become anything, so a setting of several types starts as
            None there.
    """
    for name, (default, accepts, *_) in settings.items():
        *groups, key = name.split(".")
        checks = hasattr(cfg, "register_limit")
        several = get_origin(accepts.kind) in (Union, UnionType)
        reduce(getitem, groups, cfg)[key] = default if checks or not several else None
        if checks:
            cfg.register_limit(name, accepts)
