"""What values a setting accepts: a type annotation, and a range for its numbers."""

import re
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

LONGEST = 1000  # characters of a text, values of a list


@dataclass(frozen=True)
class Accepts:
    """The values that a setting accepts.

    Attributes:
        kind: bool, int, float (integers too), str, list[...], Literal[...], or a union of these.
        low, high: the least and the largest number, in a list too. The default keeps a typing error from filling the
            memory.
    """

    kind: Any
    low: float = -1_000_000
    high: float = 1_000_000

    def accepts(self, value: Any) -> bool:
        kind, inner = get_origin(self.kind) or self.kind, get_args(self.kind)
        if kind is Literal:
            return value in inner
        if self.is_union:
            return any(self.of(part).accepts(value) for part in inner)
        if kind in (list, tuple):
            return isinstance(value, list | tuple) and len(value) <= LONGEST and all(map(self.each.accepts, value))
        if kind is str:
            return isinstance(value, str) and len(value) <= LONGEST and not re.search("[\0\ud800-\udfff]", value)
        if kind in (int, float):
            return type(value) in (int, kind) and self.low <= value <= self.high  # not True, and not NaN
        return kind is Any or isinstance(value, kind)

    def __str__(self) -> str:
        kind, inner = get_origin(self.kind) or self.kind, get_args(self.kind)
        if kind is Literal:
            return f"one of {', '.join(map(str, inner))}"
        if self.is_union:
            parts = [part for part in inner if not (part is int and float in inner)]
            return " or ".join(str(self.of(part)) for part in parts)
        if kind in (list, tuple):
            return f"a list of at most {LONGEST:,} values, each {self.each}"
        if kind in (int, float):
            return f"{'an integer' if kind is int else 'a number'} from {self.low:,} to {self.high:,}"
        texts = {str: f"text of at most {LONGEST:,} characters, without NUL or bytes that are not UTF-8"}
        return texts.get(kind, "True or False" if kind is bool else kind.__name__)

    @property
    def is_union(self) -> bool:
        return get_origin(self.kind) in (Union, UnionType)

    @property
    def each(self) -> "Accepts":
        """The type of the items of a list."""
        return self.of((*get_args(self.kind), int | float | str)[0])

    def of(self, kind: Any) -> "Accepts":
        return Accepts(kind, self.low, self.high)


def add_setting(cfg: Any, name: str, default: Any, accepts: Accepts) -> None:
    """Add a key to a configuration.

    Args:
        cfg: Dassl's configuration, changed in place; it has the group of the key.
        name: the full name of the key.
        default: its value.
        accepts: what the toolbox's node checks. A plain node of yacs holds a key to the type of its value, except that
            None may become anything, so a key of several types starts as None there.
    """
    *groups, key = name.split(".")
    checks = hasattr(cfg, "register_limit")
    reduce(getitem, groups, cfg)[key] = default if checks or not accepts.is_union else None
    if checks:
        cfg.register_limit(name, accepts)
