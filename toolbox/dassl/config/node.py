"""A yacs node that knows what its keys accept, with errors of one line that name the key and the
file.
"""

import os
from contextlib import suppress
from copy import copy, deepcopy
from functools import reduce
from operator import getitem

from yacs.config import CfgNode as YacsNode

from common.errors import UnknownNameError, UsageError, suggestion
from common.files import identity
from common.schema import TEXT, shown

from .yaml_text import parse_yaml, read_yaml

BASE_KEY = "_BASE_"
MAX_FILES = 100  # that a config file includes, directly or by others
# Characters of a text that may be a Python literal: no list or number in a config is longer
MAX_LITERAL = 2000
LIMITS = "__limits__"
LEAF_TYPES = {tuple, list, str, int, float, bool, type(None)}  # of values, as in yacs
SINGLE = LEAF_TYPES - {tuple, list}


class CfgNode(YacsNode):
    """yacs' ``CfgNode``; plain yacs nodes may be added to it.

    A key accepts what its limit says (:meth:`register_limit`). A key without one accepts, as in
    yacs, values of the type of the old one and None; if the old one is None, any value. Lists and
    tuples are converted to the type of the old value. Merging checks each value, and :meth:`freeze`
    checks all of them again. After ``set_new_allowed(True)``, files and other nodes may add keys;
    ``merge_from_list`` accepts known keys only.

    An unknown key raises :class:`UnknownNameError` (a UsageError and a KeyError) that names the
    closest known key. A missing or malformed file or a value that is not accepted raises
    :class:`UsageError`. A YAML file may name base files under ``_BASE_`` (a path or a list,
    relative to the file), whose values it overrides. Files are YAML and within bounds: yacs would
    also execute a Python file.
    """

    def register_limit(self, name, limit):
        """Set what a key, such as ``TRAINER.MINE.DEPTH``, accepts; its group exists.

        ``limit`` is a :class:`common.schema.Accepts`, or None: every value of the old value's type.
        """
        *groups, key = name.split(".")
        _limits(reduce(getitem, groups, self))[key] = limit

    def freeze(self):
        """Check the values, then make this node and those below immutable."""
        _check(self)
        super().freeze()

    def __deepcopy__(self, memo):  # also of `clone`
        return _copied(self, memo)

    @classmethod
    def load_cfg(cls, cfg_file_obj_or_str):
        """A node from YAML: its text, or an open file."""
        text = (
            cfg_file_obj_or_str
            if isinstance(cfg_file_obj_or_str, str)
            else cfg_file_obj_or_str.read()
        )
        name = getattr(cfg_file_obj_or_str, "name", "the text")
        tree = parse_yaml(text, name, unique=True)
        for _, key in _names(tree):
            if not isinstance(key, str):
                raise UsageError(f"the key {shown(key)} in {name} is not text: put it in quotes")
        try:
            return cls(tree)
        except AssertionError as error:  # yacs' check of types
            raise UsageError(f"{name} is not a config: {error}") from None

    def merge_from_file(self, cfg_filename):
        for path, tree in read_config(cfg_filename):
            self.merge_tree(tree, path)

    def merge_from_other_cfg(self, cfg_other):
        self.merge_tree(cfg_other)

    def merge_from_list(self, cfg_list):
        """Merge ``[key, value, key, value, ...]``, as given on a command line."""
        if len(cfg_list) % 2:
            raise UsageError(
                f"config options come in pairs (KEY value), but these are {len(cfg_list)}: "
                f"{cfg_list}"
            )
        for name, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            *groups, key = str(name).split(".")
            node = reduce(
                lambda node, group: node.get(group) if isinstance(node, dict) else None,
                groups,
                self,
            )
            if not isinstance(node, dict) or key not in node:
                raise self._unknown(name)
            self.merge_tree({key: value}, "", node, name.removesuffix(key))

    def merge_tree(self, tree, file="", node=None, prefix=""):
        """Merge nested dicts into ``node``, whose name is ``prefix``; by default this one. ``file``
        is for errors.
        """
        node = self if node is None else node
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if self.key_is_deprecated(name):  # in the config.yaml of an earlier version
                continue
            if key not in node and not (node.is_new_allowed() and isinstance(key, str)):
                raise self._unknown(name, f" in {file}" if file else "")
            if isinstance(value, dict) and isinstance(
                node.setdefault(key, type(node)(new_allowed=True)), YacsNode
            ):
                self.merge_tree(value, file, node[key], f"{name}.")
            else:
                node[key] = _accepted(node, key, value, name, file)

    def _unknown(self, name, source=""):
        return UnknownNameError(
            "unknown config key "
            f"{name}{source}{suggestion(name, (known for known, _ in _names(self)))}"
        )


def read_config(file, including=()):
    """The content of a YAML file and of the files that it includes, [(path, {key: value})]. Later
    values count.

    ``including`` are the paths that were read before, a list to which this adds its own.
    """
    path = os.fspath(file)
    read = including or []
    read.append(path)
    if len(read) > MAX_FILES:
        fault = f"{read[0]} includes more than {MAX_FILES} files, or itself"
        raise UsageError(f"{fault}: drop some of {BASE_KEY}")
    facts = ()
    with suppress(OSError, ValueError):  # reading the file says why
        facts = identity(path)
    tree = dict(read_yaml(path, facts))
    bases = tree.pop(BASE_KEY, None) or []
    content = []
    for base in bases if isinstance(bases, list) else [bases]:
        if not TEXT.accepts(base):
            fault = f"{BASE_KEY} in {path} is {shown(base)}"
            raise UsageError(f"{fault}: give the path of a file, or a list of paths")
        there = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        content += read_config(there, read)
    return [*content, (path, tree)]


def flatten(tree, prefix=""):
    """{"OPTIM": {"LR": 1}} -> {"OPTIM.LR": 1}"""
    flat = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


def _accepted(node, key, value, name, file):
    """A copy of ``value`` for a key of ``node``, or UsageError.

    Strings are read as Python literals, as in yacs. Where only text is accepted, one such as '2024'
    stays text; None and True do not, as nobody means these words.
    """
    old = node.get(key)
    limit = _limits(node).get(key)
    lists = (list, tuple) if isinstance(old, (list, tuple)) else ()
    if isinstance(old, YacsNode):
        kinds = set()
        limit = None
        wanted = "a group of keys"
    elif old is None or node.is_new_allowed():
        kinds = LEAF_TYPES
        wanted = "a plain value"
    else:
        kinds = LEAF_TYPES & {type(old), type(None), *lists}
        wanted = f"a value of the type {type(old).__name__}"
    accepts = limit.accepts if limit else lambda value: type(value) in kinds
    if isinstance(value, str) and len(value) <= MAX_LITERAL:
        with suppress(TypeError, RecursionError, MemoryError):  # any other string
            literal = node._decode_cfg_value(value)
            if type(literal) in LEAF_TYPES:  # not a dict: `{}` may be a template
                value = (
                    literal
                    if isinstance(literal, bool | None) or accepts(literal) or not accepts(value)
                    else value
                )
    if not accepts(value):
        raise UsageError(
            f"{file}: {name} is {shown(value)}: give {limit or wanted}".removeprefix(": ")
        )
    return type(old)(deepcopy(value)) if isinstance(value, lists) else deepcopy(value)


def _copied(node, memo):
    """A copy of a node, also of yacs' own; in the general way it takes four times as long."""
    if id(node) in memo:  # it has two names
        return memo[id(node)]
    copied = type(node).__new__(type(node))
    memo[id(node)] = copied
    for key, value in node.items():
        deep = _copied if isinstance(value, YacsNode) else deepcopy
        dict.__setitem__(copied, key, value if type(value) in SINGLE else deep(value, memo))
    for name, value in vars(node).items():  # flags, and the keys that they are about
        copied.__dict__[name] = value if type(value) in SINGLE else copy(value)
    return copied


def _check(node, prefix=""):
    """Raise UsageError for a value of a node, or of one below, that its limit does not accept."""
    for key, value in node.items():
        limit = _limits(node).get(key) or (TEXT if isinstance(value, str) else None)
        if isinstance(value, YacsNode):
            _check(value, f"{prefix}{key}.")
        elif limit and not limit.accepts(value):
            raise UsageError(f"{prefix}{key} is {shown(value)}: give {limit}")


def _limits(node):
    """The limits of the keys of a node, {key: limit}. Also works for a plain yacs node."""
    return node.__dict__.setdefault(LIMITS, {})


def _names(tree, prefix=""):
    """(full name, key) of all keys in nested dicts, those of groups included."""
    for key, value in tree.items():
        yield f"{prefix}{key}", key
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")
