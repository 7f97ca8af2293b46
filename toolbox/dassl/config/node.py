"""A yacs node whose errors fit on one line and name the key and the file."""

from ast import literal_eval
from contextlib import suppress
from copy import deepcopy
from difflib import SequenceMatcher
from pathlib import Path

import yaml
from dassl.utils.errors import MissingFileError, UnknownNameError, UsageError
from yacs.config import CfgNode as YacsNode

BASE_KEY = "_BASE_"
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
    """

    def merge_from_file(self, cfg_filename):
        """Merge a YAML file over the files it names under ``_BASE_``.

        Args:
            cfg_filename (str): the file.

        Raises:
            UsageError: the file is missing or malformed, has an unknown key or a value of the wrong type.
        """
        if not str(cfg_filename).strip():
            raise UsageError("the path of the config file is empty: give the path of a YAML file")
        tree, sources = _read_config(Path(cfg_filename))
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

        def likeness(candidate):
            # The same last name in another group ("LR" for "OPTIM.LR") counts for more than similar letters.
            same_leaf = candidate.rpartition(".")[2].lower() == str(name).rpartition(".")[2].lower()
            return SequenceMatcher(None, str(name).lower(), candidate.lower()).ratio() + 0.3 * same_leaf

        closest = max(_flatten(self), key=likeness, default=None)
        hint = f"; did you mean {closest}?" if closest else ""
        return UnknownNameError(f"unknown config key {name} in {source}{hint}")


def _apply(changes):
    for node, key, value in list(changes):  # all are checked before the first is made
        node[key] = value


def _fit(value, old, name, source):
    """A copy of ``value`` that can replace ``old``: strings are read as Python literals, as in yacs.

    Raises:
        UsageError: ``value`` has another type than ``old``.
    """
    if isinstance(value, str):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # any other string
            value = literal_eval(value)
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


def _read_config(path, parents=()):
    """Read a YAML file and the files it names under ``_BASE_``.

    Args:
        path (Path): the file.
        parents (tuple of Path): the files whose ``_BASE_`` led here.

    Returns:
        tree (dict): the values of the file over those of its bases, nested.
        sources (dict): for each key, by its full name, the file that set it last.
    """
    chain = (*parents, path.resolve())
    if chain[-1] in parents:
        raise UsageError(f"config files include each other ({' -> '.join(p.name for p in chain)}): drop a {BASE_KEY}")
    own, tree, sources = _read_yaml(path), {}, {}
    bases = own.pop(BASE_KEY, None) or []
    for base in bases if isinstance(bases, list) else [bases]:
        base_tree, base_sources = _read_config(path.parent / Path(str(base)).expanduser(), chain)
        tree, sources = _overlay(base_tree, tree), sources | base_sources
    return _overlay(own, tree), sources | dict.fromkeys(_flatten(own), str(path))


def _overlay(tree, base):
    """Nested dicts: the values of ``tree``, and those of ``base`` that it does not replace."""
    merged = dict(base)
    for key, value in tree.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(value, merged[key]) if both else value
    return merged


def _read_yaml(path):
    """The mapping in a YAML file ({} when the file is empty)."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"there is no config file {path}: check the path") from None
    except IsADirectoryError:
        raise UsageError(f"cannot read the config file {path}: it is a folder; give the path of a YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line} is not YAML ({error.problem}): fix it") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the config file {path} ({' '.join(str(error).split())})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UsageError(f"{path} is not a config: it must contain lines such as `OPTIM:` and, indented, `LR: 0.002`")
    return tree
