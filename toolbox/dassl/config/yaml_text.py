"""YAML within bounds: no file can hang a command, fill its memory or make it run code."""

import os
import stat

import yaml
from dassl.utils.errors import MissingFileError, UsageError
from dassl.utils.tools import nearest

# A config has about 30 lines. These bounds are far above that, and what they admit is read in about a second.
MAX_BYTES = 1 << 20
MAX_VALUES = 20_000  # keys and values; those of an alias count at each use, as whoever walks the tree meets them
MAX_DEPTH = 50
MAX_DIGITS = 100  # of a number or date

NUMBERS = [f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")]


def read_text(path):
    """The text of a regular file of at most MAX_BYTES; it never waits, as opening a named pipe would.

    Raises:
        UsageError: the file is missing, larger, not a regular file or not UTF-8.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(
                    f"cannot read the config file {path}: it is not a regular file; give the path of a YAML file"
                )
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"cannot read the config file {path}: it is larger than {MAX_BYTES:,} bytes; shorten it")
        return content.decode("utf-8")
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        names = os.listdir(folder) if os.path.isdir(folder) else []
        there = sorted(name for name in names if name.endswith(".yaml") and not name.startswith("."))
        remedy = f"its folder has {', '.join(there)}" if there else "check the path"
        raise MissingFileError(
            f"there is no config file {path}: {remedy}{nearest(os.path.basename(path), there)}"
        ) from None
    except IsADirectoryError:
        raise UsageError(f"cannot read the config file {path}: it is a folder; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UsageError(
            f"cannot read the config file {path}: it is not UTF-8 text; give the path of a YAML file"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read the config file {path} ({error.strerror}): check the path") from None


def _open_at_once(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parse_yaml(text, name):
    """The content of a YAML text: dicts, lists and plain values.

    Args:
        text (str): the text.
        name (str): what it is, for errors.

    Raises:
        UsageError: it is malformed, a value is invalid, or it exceeds MAX_VALUES, MAX_DEPTH or MAX_DIGITS.
    """
    try:
        _check_bounds(text)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, UnicodeError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{name}{line} is invalid YAML ({problem}): fix it") from None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """PyYAML's safe loader, with a YAMLError for each value that it cannot make."""

    def construct_object(self, node, deep=False):
        number = node.tag in NUMBERS
        try:
            if number and (not isinstance(node, yaml.ScalarNode) or len(node.value) > MAX_DIGITS):
                raise ValueError
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, AttributeError, LookupError, TypeError):
            problem = f"not a valid {node.tag.rpartition(':')[2]}"
            if number:
                problem += f" of at most {MAX_DIGITS} characters"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _check_bounds(text):
    """Raise a YAMLError if the text exceeds the bounds, without building anything from it."""
    values, sizes, unfinished = 0, {}, []
    for event in yaml.parse(text, _Loader):
        problem = None
        if isinstance(event, yaml.AliasEvent):
            values += sizes.get(event.anchor, 0)
            if event.anchor not in sizes:
                problem = f"the alias *{event.anchor} is undefined, or part of its own value"
        elif isinstance(event, yaml.NodeEvent):
            values += 1
            sizes[event.anchor] = 1
        if isinstance(event, yaml.CollectionStartEvent):
            del sizes[event.anchor]
            unfinished.append((event.anchor, values - 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = unfinished.pop()
            sizes[anchor] = values - before
        if len(unfinished) > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} levels"
        elif values > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} values, those of an alias counted at each use"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
