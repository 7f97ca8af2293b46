"""YAML within bounds: no file can hang a command, fill its memory or make it run code."""

import os
from functools import lru_cache

import yaml

from common.errors import MissingFileError, UsageError, suggestion
from common.text import read_text

# A config has about 30 lines. These bounds are far above that.
MAX_BYTES = 1 << 20
# Keys and values; those of an alias count at each use, as whoever walks the tree meets them
MAX_VALUES = 20_000
MAX_DEPTH = 50

INVALID = (
    yaml.YAMLError,
    ValueError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    RecursionError,
)
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache(256)
def read_yaml(path, facts):
    """The mapping of a config file, which is read again if its ``facts`` change: the runs of a
    study name the same files.

    Errors are those of `common.text.read_text`, that of a missing file with a similar name, and of
    `parse_yaml`.
    """
    try:
        text = read_text(path, MAX_BYTES)
    except MissingFileError as error:
        folder = os.path.dirname(path) or "."
        names = os.listdir(folder) if os.path.isdir(folder) else []
        near = suggestion(
            os.path.basename(path), (name for name in names if name.endswith(".yaml"))
        )
        raise MissingFileError(f"there is no config file {path}: check the path{near}") from error
    return parse_yaml(text, path)


def parse_yaml(text, name, unique=False):
    """The mapping of a YAML text: dicts, lists and plain values; {} if it is empty. Errors call it
    `name`.

    Raises UsageError if it is malformed, not a mapping, a value is invalid, or it exceeds a bound
    of this module; or, if `unique`, a key is there twice. Otherwise the last one counts, as in
    yacs.
    """
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _check_nodes(node, unique)
        tree = {} if node is None else loader.construct_document(node)
    except INVALID as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{name}{line} is invalid YAML ({problem}): fix it") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UsageError(f"{name} is not a config: it must contain lines of KEY: VALUE")
    return tree


def _check_nodes(root, unique):
    """Raise a YAMLError if a tree of nodes is beyond a bound or, if `unique`, has a key twice;
    nothing is built yet.
    """
    nodes = [(root, 1)]
    count = 0
    while nodes:
        node, depth = nodes.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            problem = (
                f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels, those of an alias "
                "counted at each use"
            )
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        if isinstance(node, yaml.SequenceNode):
            nodes += [(item, depth + 1) for item in node.value]
        names = set()
        for key, value in pairs:
            if unique and isinstance(key, yaml.ScalarNode):
                if key.value in names:
                    problem = f"the key {key.value} is there twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                names.add(key.value)
            nodes += [(key, depth + 1), (value, depth + 1)]
