"""Write docs/configuration.md, and the tables of other pages (tables.py), from the code: `python docs/reference.py`."""

import inspect
import re
import sys
from collections.abc import Container
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from dassl.config import defaults, get_cfg_default  # noqa: E402
from dassl.config.node import LIMITS  # noqa: E402

import datasets  # noqa: E402
import trainers  # noqa: E402
from experiments import configuration  # noqa: E402

PAGE = ROOT / "docs/configuration.md"
HEAD = """# Configuration reference

Every setting, its default and the values that it accepts. `python docs/reference.py` writes this page from the code.
Set a value in a YAML file, or as `KEY VALUE` at the end of a command. A value that is not accepted ends the command in
one line that names the key. [Train and test](running.md#settings) explains the most important settings, and
[Reproduce a table](reproduce.md) has the values of the protocols.

`BY_DATASET.<NAME>.<KEY>` in the YAML file of a method is a value for one dataset.
"""
METHODS = """## Settings of methods

A method reads the keys below `TRAINER.<NAME IN CAPITALS>`. The defaults are those of the code. The YAML files in
`configs/trainers/` replace many of them, and [Methods](methods.md) has the formulas.
"""
TRAINER_NAME = "Name of a method, with a plug-in such as `DePT+MPL`, or of another trainer"
PLUGIN = "`{}+METHOD` reads these in addition to the settings of the method, in the section of the method."
UNREAD = """## Settings that nothing reads

YAML files of the published Dassl may set these. They are accepted and have no effect:"""


def meanings() -> dict[str, str]:
    """The meaning of each setting of Dassl and of this project."""
    declared = defaults.SETTINGS | datasets.SETTINGS | configuration.SETTINGS
    found = {key: meaning for key, (_, _, *texts) in declared.items() for meaning in texts if meaning}
    return {key: meaning[0].upper() + meaning[1:] for key, meaning in found.items()}


def cell(value: object) -> str:
    """A text as the cell of a table, without limits that only keep a typing error from filling the memory."""
    text = re.sub(r"text of at most .*", "text", str(value))
    text = re.sub(r"a list of at most [\d,]+ values, each", "a list, each", text)
    text = re.sub(r" from -1,000,000 to 1,000,000", "", text)
    return re.sub(r"(,\d{3})\.0\b", r"\1", text).replace("|", r"\|")


def table(rows: list[tuple]) -> str:
    """Rows of key, default, accepted values and perhaps a comment."""
    head = ("key", "default", "accepts", "meaning")[: len(rows[0])]
    lines = [head, ["---"] * len(head)]
    lines += [(f"`{key}`", f"`{default!r}`", *map(cell, others)) for key, default, *others in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings(cfg, prefix: str = "") -> dict[str, tuple]:
    """The settings of a configuration by their full names: the default, and the limit or None."""
    found = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            found |= settings(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value, vars(cfg).get(LIMITS, {}).get(key)
    return found


def of_method(kind: type, left_out: Container[str] = ()) -> str:
    """The table of a method's settings, without those of a key in `left_out`, below what its class says of them."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    text = "" if text.startswith(f"{kind.__name__}(") else " ".join(text.split())  # made by dataclasses
    accepted, values = kind.schema(), vars(kind())
    rows = [(key, values[key], limit) for key, limit in accepted.items() if key not in left_out]
    return f"{text}\n\n{table(rows)}" if text else table(rows)


def page() -> str:
    cfg = get_cfg_default()
    configuration.extend_cfg(cfg)
    known = meanings()
    for name, method in trainers.methods().items():
        known |= dict.fromkeys(method.published_keys, f"Read by {name.partition('+')[0]} ([Methods](methods.md))")
    common = {key: value for key, value in settings(cfg).items() if not key.startswith("TRAINER.")}
    groups: dict[str, list[tuple]] = {}
    for key, (default, limit) in common.items():
        if limit is not None:
            group = key.rpartition(".")[0].partition(".")[0] or "The run"
            groups.setdefault(group, []).append((key, default, limit, known.get(key, "")))
    groups["The run"].append(("TRAINER.NAME", "", "text", TRAINER_NAME))
    parts = [HEAD]
    for group, rows in groups.items():
        parts += [f"## {group}", table(rows)]
    parts.append(METHODS)
    plugged = {}
    for name, method in sorted(trainers.methods().items(), key=lambda item: item[0].lower()):
        plugin, plus, over = name.partition("+")
        if plus:
            plugged.setdefault(plugin, (method, trainers.methods()[over].Settings.schema()))
            continue
        other = method.sections()[1:]
        also = f" (also `TRAINER.{other[0]}`, as in its published files)" if other else ""
        parts += [f"### {name}", f"`TRAINER.{method.section()}`{also}", of_method(method.Settings)]
    for plugin, (method, own) in plugged.items():
        parts += [f"### {plugin}", PLUGIN.format(plugin), of_method(method.Settings, own)]
    unread = [f"`{key}`" for key, (_, limit) in common.items() if limit is None]
    parts += [UNREAD, f"{', '.join(unread)}."]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    import tables

    PAGE.write_text(page())
    for name in tables.PAGES:
        (ROOT / name).write_text(tables.written((ROOT / name).read_text()))
