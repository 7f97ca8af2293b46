"""Which values a setting accepts. :mod:`dassl.config.defaults` has the limit of each option.

A limit is any object with ``accepts(value)`` and a ``str()`` that says in words what it accepts.
"""

import re
from dataclasses import dataclass
from reprlib import Repr

_short = Repr()
_short.maxstring = _short.maxother = 80
shown = _short.repr  # of values in messages: one line, not a megabyte


@dataclass(frozen=True)
class Number:
    """Finite numbers (or integers) from ``low`` to ``high``, without ``but``; ``note`` explains special values."""

    low: float
    high: float
    note: str = ""
    but: tuple | range = ()

    kinds = (int, float)  # not bool
    name = "a number"

    def accepts(self, value):
        return type(value) in self.kinds and self.low <= value <= self.high and value not in self.but

    def __str__(self):
        return f"{self.name} from {self.low:,} to {self.high:,}{f' ({self.note})' if self.note else ''}"


class Integer(Number):
    kinds = (int,)
    name = "an integer"


@dataclass(frozen=True)
class Choice:
    """One of some names."""

    names: tuple

    def accepts(self, value):
        return value in self.names

    def __str__(self):
        return f"one of {', '.join(self.names)}"


class Flag:
    """True or False."""

    def accepts(self, value):
        return type(value) is bool

    def __str__(self):
        return "True or False"


class Text:
    """Strings that can be printed and used in paths."""

    most = 4096  # as of a path

    def accepts(self, value):
        return isinstance(value, str) and len(value) <= self.most and not re.search("[\0\ud800-\udfff]", value)

    def __str__(self):
        return f"text of at most {self.most:,} characters, without NUL or bytes that are not UTF-8"


@dataclass(frozen=True)
class Several:
    """A list or tuple of ``least`` to ``most`` values that ``each`` accepts."""

    each: object
    least: int = 0
    most: int = 1000
    ascending: bool = False

    def accepts(self, value):
        if not isinstance(value, (list, tuple)) or not self.least <= len(value) <= self.most:
            return False
        return all(map(self.each.accepts, value)) and not (self.ascending and list(value) != sorted(value))

    def __str__(self):
        count = self.least if self.least == self.most else f"{self.least} to {self.most:,}"
        return f"a list of {count} values{' in ascending order' if self.ascending else ''}, each {self.each}"
