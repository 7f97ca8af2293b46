"""YAML within bounds: no file can hang a command, fill its memory or make it run code."""

import os

import yaml

from common.errors import MissingFileError, UsageError, suggestion
from common.text import read_text

# A config has about 30 lines. These bounds are far above that, and what they admit is read in about a second.
MAX_BYTES = 1 << 20
MAX_VALUES = 20_000  # keys and values; those of an alias count at each use, as whoever walks the tree meets them
MAX_DEPTH = 50
MAX_DIGITS = 100  # of a number or date

INVALID = (yaml.YAMLError, ValueError, ArithmeticError, AttributeError, LookupError, TypeError, RecursionError)
NUMBERS = [f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")]
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml_text(path):
    """The text of a config file; errors as for `common.text.read_text`, that of a missing one with a similar name."""
    try:
        return read_text(path, MAX_BYTES)
    except MissingFileError as error:
        folder = os.path.dirname(path) or "."
        names = os.listdir(folder) if os.path.isdir(folder) else []
        near = suggestion(os.path.basename(path), (name for name in names if name.endswith(".yaml")))
        raise MissingFileError(f"there is no config file {path}: check the path{near}") from error


def parse_yaml(text, name, unique=False):
    """The mapping of a YAML text: dicts, lists and plain values; {} if it is empty. Errors call it `name`.

    Raises:
        UsageError: it is malformed, not a mapping, a value is invalid, or it exceeds a bound of this module; or, if
            `unique`, a key is there twice. Otherwise the last one counts, as in yacs.
    """
    try:
        _check_depth(text)
        loader = Loader(text)
        node = loader.get_single_node()
        _check_bounds(node)
        if unique:
            _check_keys(node)
        tree = {} if node is None else loader.construct_document(node)
    except INVALID as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{name}{line} is invalid YAML ({problem}): fix it") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UsageError(f"{name} is not a config: it must contain lines of KEY: VALUE")
    return tree


def _check_depth(text):
    """Raise a YAMLError for too many levels before there are nodes: libyaml's need the stack, and can overflow it."""
    depth = 0
    for event in yaml.parse(text, Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels", problem_mark=event.start_mark)


def _check_bounds(root):
    """Raise a YAMLError if a tree of YAML nodes exceeds the bounds; nothing is built from it yet."""
    found, count = [(root, 1)] if root else [], 0
    while found:
        node, depth = found.pop()
        count += 1
        problem = ""
        if count > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} values, those of an alias counted at each use"
        elif depth > MAX_DEPTH:
            problem = f"an alias inside itself, or more than {MAX_DEPTH} levels with aliases"
        elif node.tag in NUMBERS and not (isinstance(node, yaml.ScalarNode) and len(node.value) <= MAX_DIGITS):
            problem = f"not a number or date of at most {MAX_DIGITS} characters"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            found += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            found += [(item, depth + 1) for pair in node.value for item in pair]


def _check_keys(root):
    """Raise a YAMLError if a mapping below a YAML node has a key twice."""
    found = [root] if isinstance(root, yaml.CollectionNode) else []
    while found:
        node, seen = found.pop(), set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, item) for item in node.value]
        for key, value in pairs:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            found += [value] if isinstance(value, yaml.CollectionNode) else []
