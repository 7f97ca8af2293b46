"""Which values a setting can have. The table for all options is in :mod:`dassl.config.defaults`."""

import re
from dataclasses import dataclass
from reprlib import Repr

from dassl.utils.errors import UsageError
from dassl.utils.tools import nearest

_short = Repr()
_short.maxstring = _short.maxother = 80
shown = _short.repr  # of values in messages: one line, not a megabyte


class Limit:
    """What values a setting accepts; ``str()`` says it in words."""

    def accepts(self, value):
        raise NotImplementedError

    def hint(self, value):
        """More about a value that is not accepted."""
        return ""


@dataclass(frozen=True)
class Number(Limit):
    """Finite numbers from ``low`` to ``high``, without those in ``but``; ``note`` explains special values."""

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
    """Integers from ``low`` to ``high``."""

    kinds = (int,)
    name = "an integer"


class Choice(Limit):
    """One of some names."""

    def __init__(self, *names):
        self.names = names

    def accepts(self, value):
        return value in self.names

    def hint(self, value):
        return nearest(value, self.names)

    def __str__(self):
        return f"one of {', '.join(self.names)}"


class Flag(Limit):
    """True or False."""

    def accepts(self, value):
        return type(value) is bool

    def __str__(self):
        return "True or False"


class Text(Limit):
    """Strings that can be printed and used in paths."""

    most = 4096  # as of a path

    def accepts(self, value):
        return isinstance(value, str) and len(value) <= self.most and not re.search("[\0\ud800-\udfff]", value)

    def __str__(self):
        return f"text of at most {self.most:,} characters, without NUL or bytes that are not UTF-8"


@dataclass(frozen=True)
class Several(Limit):
    """A list or tuple of ``least`` to ``most`` values that ``each`` accepts."""

    each: Limit
    least: int = 0
    most: int = 1000
    ascending: bool = False

    def accepts(self, value):
        if not isinstance(value, (list, tuple)) or not self.least <= len(value) <= self.most:
            return False
        return all(map(self.each.accepts, value)) and not (self.ascending and list(value) != sorted(value))

    def hint(self, value):
        rejected = [item for item in value if not self.each.accepts(item)] if isinstance(value, (list, tuple)) else []
        return self.each.hint(rejected[0]) if rejected else ""

    def __str__(self):
        count = self.least if self.least == self.most else f"{self.least} to {self.most:,}"
        return f"a list of {count} values{' in ascending order' if self.ascending else ''}, each {self.each}"


def check_limits(cfg, limits):
    """Check the values of a config.

    Args:
        cfg (CfgNode): the config. Keys that it does not have are not checked.
        limits (dict): for each key, by its full name, the limit of its values.

    Raises:
        UsageError: a value is not accepted; the message names the key, the value and what is accepted.
    """
    for name, limit in limits.items():
        node, *groups, key = cfg, *name.split(".")
        for group in groups:
            node = node.get(group, {})
        if key in node and not limit.accepts(node[key]):
            raise UsageError(f"{name} is {shown(node[key])}: give {limit}{limit.hint(node[key])}")
