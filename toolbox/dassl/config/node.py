"""A yacs node that says what is wrong with a config in one line."""

import re
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path

import yaml
from dassl.utils.errors import MissingFileError, UnknownNameError, UsageError
from yacs.config import CfgNode as YacsNode

BASE_KEY = "_BASE_"


class CfgNode(YacsNode):
    """yacs' ``CfgNode``; plain yacs nodes may be added to it.

    What differs from yacs: an unknown key raises :class:`UnknownNameError` (a UsageError and a KeyError) that names the
    closest known key; a missing or malformed file and a value of the wrong type raise :class:`UsageError`; a YAML
    file may name others under ``_BASE_`` (a path or a list, relative to the file), which are merged before it.
    """

    def merge_from_file(self, cfg_filename):
        """Merge a YAML file, after the files it names under ``_BASE_``.

        Args:
            cfg_filename (str): the file.

        Raises:
            UsageError: the file is missing or malformed, has an unknown key or a value of the wrong type.
        """
        self._merge_yaml(Path(cfg_filename), ())

    def merge_from_other_cfg(self, cfg_other):
        """Merge another node; raises UsageError as :meth:`merge_from_file` does."""
        self._merge_node(cfg_other, "the config")

    def merge_from_list(self, cfg_list):
        """Merge ``[key, value, key, value, ...]``, as given on a command line.

        Raises:
            UsageError: an odd number of items, an unknown key, or a value of the wrong type.
        """
        if len(cfg_list) % 2:
            raise UsageError(f"config options come in pairs (KEY value), but these are {len(cfg_list)}: {cfg_list}")
        known = set(_flatten(self))
        for key in cfg_list[::2]:
            if key not in known and not self.key_is_renamed(key) and not self.key_is_deprecated(key):
                raise _unknown_key(key, known, "the given options")
        with _one_line_errors(self, "the given options"):
            super().merge_from_list(cfg_list)

    @classmethod
    def _decode_cfg_value(cls, value):
        return value if isinstance(value, YacsNode) else super()._decode_cfg_value(value)

    def _merge_yaml(self, path, parents):
        """Merge the file ``path``; ``parents`` are the files whose ``_BASE_`` led here."""
        chain = (*parents, path.resolve())
        if chain[-1] in parents:
            raise UsageError(
                f"config files include each other ({' -> '.join(p.name for p in chain)}): drop a {BASE_KEY}"
            )
        tree = _read_yaml(path)
        bases = tree.pop(BASE_KEY, None) or []
        for base in bases if isinstance(bases, list) else [bases]:
            self._merge_yaml(path.parent / Path(str(base)).expanduser(), chain)
        with _one_line_errors(self, str(path)):
            other = CfgNode(tree)
        self._merge_node(other, str(path))

    def _merge_node(self, other, source):
        with _one_line_errors(self, source):
            super().merge_from_other_cfg(_alike(other, self))


def _alike(node, target):
    """`node` with every group in the class of the group it is merged into: yacs merges only equal classes."""
    same = type(target)()
    for key, value in node.items():
        group = isinstance(value, YacsNode) and isinstance(target.get(key), YacsNode)
        same[key] = _alike(value, target[key]) if group else value
    return same


def _read_yaml(path):
    """The mapping in a YAML file ({} when the file is empty)."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"there is no config file {path}: check the path") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line} is not YAML ({error.problem}): mend it") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the config file {path} ({' '.join(str(error).split())})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UsageError(f"{path} is not a config: it must hold lines such as `OPTIM:` and, indented, `LR: 0.002`")
    return tree


@contextmanager
def _one_line_errors(cfg, source):
    """Turn what yacs raises while it merges ``source`` into UsageErrors."""
    try:
        yield
    except UsageError:
        raise
    except (KeyError, ValueError, AssertionError, TypeError) as error:
        text = str(error.args[0]) if error.args else ""
        unknown = re.fullmatch(r"Non-existent (?:config )?key: (.*)", text)
        if unknown:
            raise _unknown_key(unknown[1], _flatten(cfg), source) from None
        mismatch = re.fullmatch(
            r"Type mismatch \(<class '(.*?)'> vs\. <class '(.*?)'>\) with values \(.*\) for config key: (.*)",
            text,
            re.DOTALL,
        )
        if mismatch:
            wanted, given = (_type_name(name) for name in mismatch.group(1, 2))
            hint = " (write 1.0 for 1)" if (wanted, given) == ("a float", "an int") else ""
            raise UsageError(f"{mismatch[3]} in {source} takes {wanted}, not {given}{hint}") from None
        raise UsageError(f"{source}: {' '.join(text.split())}") from None


def _type_name(qualified):
    """A type with its article, for a message."""
    if qualified.endswith("CfgNode"):
        return "a group of keys"
    return f"{'an' if qualified[0] in 'aeiou' else 'a'} {qualified}"


def _flatten(node, prefix=""):
    """Full names of all keys under a node, those of groups included."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, YacsNode):
            yield from _flatten(value, f"{prefix}{key}.")


def _unknown_key(key, known, source):
    """The error for ``key``, naming the closest of the ``known`` keys."""

    def likeness(candidate):
        # The same last name in another group ("LR" for "OPTIM.LR") counts for more than a chance likeness.
        same_leaf = candidate.rpartition(".")[2].lower() == str(key).rpartition(".")[2].lower()
        return SequenceMatcher(None, str(key).lower(), candidate.lower()).ratio() + 0.3 * same_leaf

    closest = max(known, key=likeness, default=None)
    hint = f"; did you mean {closest}?" if closest else ""
    return UnknownNameError(f"unknown config key {key} in {source}{hint}")
