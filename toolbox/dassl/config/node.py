"""A yacs node whose errors fit on one line and name the key and the file."""

import os
from ast import literal_eval
from contextlib import suppress
from copy import deepcopy

from dassl.utils.errors import UnknownNameError, UsageError
from dassl.utils.tools import nearest
from yacs.config import CfgNode as YacsNode

from .limits import Text, check_limits, shown
from .yaml_text import parse_yaml, read_text

BASE_KEY = "_BASE_"
MAX_FILES = 100  # that a config file includes, directly or by others
MAX_LITERAL = 2000  # characters of a text that may be a Python literal: no list or number in a config is longer
LIMITS = "__limits__"
LEAF_TYPES = {tuple, list, str, int, float, bool, type(None)}  # of values, as in yacs


class CfgNode(YacsNode):
    """yacs' ``CfgNode``; plain yacs nodes may be added to it.

    Differences from yacs: keys and types are checked before anything is merged, so a failed merge changes nothing. An
    unknown key raises :class:`UnknownNameError` (a UsageError and a KeyError) that names the closest known key. A
    missing or malformed file or a value of the wrong type raises :class:`UsageError`. A YAML file may name base files
    under ``_BASE_`` (a path or a list, relative to the file), whose values it overrides.

    As in yacs, a new value must have the type of the old one, with three exceptions: lists and tuples are converted to
    each other, None can replace any value, and any value can replace None. After ``set_new_allowed(True)``, files and
    other nodes may add keys; ``merge_from_list`` accepts known keys only.

    ``freeze()`` checks each value against the limit that is registered for its key. ``load_cfg`` reads YAML only, and
    within bounds: yacs would also execute a Python file.
    """

    def register_limit(self, name, limit):
        """Set what a key accepts, checked by :meth:`freeze`.

        Args:
            name (str): the key, such as ``TRAINER.MINE.DEPTH``.
            limit: an object of :mod:`dassl.config.limits`, or None: everything of the right type.
        """
        limits = self.__dict__.setdefault(LIMITS, {})
        limits[name] = limit
        if limit is None:
            del limits[name]

    def freeze(self):
        """Check the values, then make this node and those below immutable.

        Raises:
            UsageError: a value is not accepted; the message names the key, the value and what is accepted.
        """
        check_limits(self, self.__dict__.get(LIMITS, {}))
        super().freeze()

    @classmethod
    def load_cfg(cls, cfg_file_obj_or_str):
        """A node from YAML.

        Args:
            cfg_file_obj_or_str (str or file): the text, or an open file.

        Raises:
            UsageError: it is malformed, not a mapping, too large, or has values of other types.
        """
        text = cfg_file_obj_or_str if isinstance(cfg_file_obj_or_str, str) else cfg_file_obj_or_str.read()
        name = getattr(cfg_file_obj_or_str, "name", "the text")
        tree = _mapping(text, name)
        try:
            return cls(tree)
        except AssertionError as error:  # yacs' check of types
            raise UsageError(f"{name} is not a config: {error}") from None

    def merge_from_file(self, cfg_filename):
        """Merge a YAML file over the files it names under ``_BASE_``.

        Args:
            cfg_filename (str): the file.

        Raises:
            UsageError: the file is missing or malformed, has an unknown key or a value of the wrong type.
        """
        path = os.fspath(cfg_filename)
        if not path.strip() or not Text().accepts(path):
            raise UsageError(f"{path!r} is not the path of a config file: give the path of a YAML file")
        tree, sources = _read_config(path)
        _apply(self._changes(self, tree, sources))

    def merge_from_other_cfg(self, cfg_other):
        """Merge another node; raises UsageError as :meth:`merge_from_file` does."""
        _apply(self._changes(self, cfg_other, dict.fromkeys(_flatten(cfg_other), "the config")))

    def merge_from_list(self, cfg_list):
        """Merge ``[key, value, key, value, ...]``, as given on a command line.

        Raises:
            UsageError: an odd number of items, an unknown key, or a value of the wrong type.
        """
        if len(cfg_list) % 2:
            raise UsageError(f"config options come in pairs (KEY value), but these are {len(cfg_list)}: {cfg_list}")
        changes, source = [], "the given options"
        for name, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            if self.key_is_deprecated(name):
                continue
            node, *groups, key = self, *str(name).split(".")
            for group in groups:
                node = node.get(group) if isinstance(node, YacsNode) else None
            if self.key_is_renamed(name) or not isinstance(node, YacsNode) or key not in node:
                raise self._unknown_key(name, source)
            prefix = name.removesuffix(key)
            sources = dict.fromkeys(_flatten({key: value}, prefix), source)
            changes += self._changes(node, {key: value}, sources, prefix)
        _apply(changes)

    def _changes(self, node, tree, sources, prefix=""):
        """Check that the keys and types of ``tree`` fit ``node``; yield (node, key, new value) for each key.

        ``sources`` says, by the full name of each key, where its value comes from. ``prefix`` is the name of ``node``.
        """
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if key not in node and not (node.is_new_allowed() and isinstance(key, str)):
                if not self.key_is_deprecated(name):
                    raise self._unknown_key(name, sources[name])
                continue
            old = node.get(key)
            if isinstance(value, dict) and (old is None or isinstance(old, YacsNode)):
                group = type(self)(new_allowed=True) if old is None else old
                yield node, key, group
                yield from self._changes(group, value, sources, f"{name}.")
            else:
                yield node, key, _fit(value, old, name, sources[name])

    def _unknown_key(self, name, source):
        """The error for a key that is unknown or was renamed."""
        if self.key_is_renamed(name):
            try:
                self.raise_key_rename_error(name)
            except KeyError as error:
                return UsageError(f"{source}: {error.args[0]}")

        return UnknownNameError(f"unknown config key {name} in {source}{nearest(name, _flatten(self))}")


def _apply(changes):
    for node, key, value in list(changes):  # all are checked before the first is made
        node[key] = value


def _fit(value, old, name, source):
    """A copy of ``value`` that can replace ``old``: strings are read as Python literals, as in yacs.

    Raises:
        UsageError: ``value`` has another type than ``old``.
    """
    if isinstance(value, str) and len(value) <= MAX_LITERAL:
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # any other string
            literal = literal_eval(value)
            value = literal if type(literal) in LEAF_TYPES else value  # not a dict: `{}` may be a template
    kinds = type(old), type(value)
    if type(value) in LEAF_TYPES and not isinstance(old, YacsNode):
        if kinds[0] is kinds[1] or type(None) in kinds:
            return deepcopy(value)
        if set(kinds) == {list, tuple}:
            return type(old)(deepcopy(value))
    wanted = "a plain value" if old is None else _type_name(old)
    hint = " (write 1.0 for 1)" if kinds == (float, int) else ""
    raise UsageError(f"{name} in {source} takes {wanted}, not {_type_name(value)}{hint}")


def _type_name(value):
    """The type of a value with its article, for a message."""
    if isinstance(value, YacsNode) or type(value) is dict:
        return "a group of keys"
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _flatten(tree, prefix=""):
    """Full names of all keys in nested dicts, those of groups included."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")


def _read_config(path, parents=(), files=None):
    """Read a YAML file and the files it names under ``_BASE_``.

    Args:
        path (str): the file.
        parents (tuple of str): the files whose ``_BASE_`` led here.
        files (list of str): all files that were read so far.

    Returns:
        tree (dict): the values of the file over those of its bases, nested.
        sources (dict): for each key, by its full name, the file that set it last.
    """
    files = [] if files is None else files
    files.append(path)
    own, tree, sources = _mapping(read_text(path), path), {}, {}
    bases = own.pop(BASE_KEY, None) or []
    chain = (*parents, path)
    if any(os.path.samefile(path, parent) for parent in parents):
        names = " -> ".join(map(os.path.basename, chain))
        raise UsageError(f"config files include each other ({names}): drop a {BASE_KEY}")
    if len(files) > MAX_FILES:
        raise UsageError(f"{files[0]} includes more than {MAX_FILES} files: drop some of {BASE_KEY}")
    for base in bases if isinstance(bases, list) else [bases]:
        if not Text().accepts(base):
            raise UsageError(f"{BASE_KEY} in {path} is {shown(base)}: give the path of a file, or a list of paths")
        base_path = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        base_tree, base_sources = _read_config(base_path, chain, files)
        tree, sources = _overlay(base_tree, tree), sources | base_sources
    return _overlay(own, tree), sources | dict.fromkeys(_flatten(own), path)


def _overlay(tree, base):
    """Nested dicts: the values of ``tree``, and those of ``base`` that it does not replace."""
    merged = dict(base)
    for key, value in tree.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(value, merged[key]) if both else value
    return merged


def _mapping(text, name):
    """The mapping of a YAML text; {} if it is empty."""
    tree = parse_yaml(text, name)
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UsageError(f"{name} is not a config: it must contain lines of KEY: VALUE")
    return tree
