"""Write docs/configuration.md, and the tables of other pages (tables.py), from the code: `python
docs/reference.py`.
"""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from dassl.config import defaults, get_cfg_default  # noqa: E402
from dassl.config.node import LIMITS  # noqa: E402

import datasets  # noqa: E402
import trainers  # noqa: E402
from fit.options import flag_of, help_of, options_of_fit  # noqa: E402
from runs import config  # noqa: E402

PAGE = ROOT / "docs/configuration.md"
HEAD = """# Configuration reference

Every setting with its default, its meaning and the values that it accepts. A range is of real numbers if the default
has a point, else of integers. `python docs/reference.py` writes this page from the code. Set a value in a YAML file, or
as `KEY VALUE` at the end of a command. A value that is not accepted ends the command in one line that names the key.
[Train and test](running.md#settings) explains the most important settings.
`BY_DATASET.<NAME>.<KEY>` in the YAML file of a method is a value for one dataset.
"""
METHODS = """## Settings of methods

A method reads the keys below `TRAINER.<NAME IN CAPITALS>`. The defaults are those of the code. The YAML files in
`configs/trainers/` replace many of them, and [Methods](methods.md) has the formulas. Numbers have bounds, which an
error names. Several methods have these keys:
"""
SHARED = {
    "PREC": "precision of the backbone, of all methods (fp16 if nothing sets it)",
    "N_CTX": "number of context tokens or prompts",
    "CTX_INIT": "words that the context starts from; empty: random numbers",
    "CLASS_TOKEN_POSITION": "place of the class name among the context tokens",
    "CSC": "a context for each class (default False)",
    "PROMPT_DEPTH": "layers with prompts",
    "AUGMENT_EPOCH": "random views of each training image; 0: the image without augmentation",
    "CHOOSE_ON": "images that choose the settings which are 0 (default validation; oracle: the test images)",
    "VIEWS": "views of a test image (default 64)",
    "AUGMIX": "mix the views with AugMix (default False)",
    "TEMPLATES": "sentences with {} for the class name; empty: those of the publication",
}
USUAL = (
    ("CSC", False),
    ("AUGMIX", False),
    ("CHOOSE_ON", "validation"),
    ("VIEWS", 64),
)
TRAINER_NAME = "Name of a method, with a plug-in such as `DePT+MPL`, or of another trainer"
PLUGIN = "`{}+METHOD` reads these keys in the section of the method, beside those of the method: "
UNREAD = """## Settings that nothing reads

YAML files of the published Dassl may set these. They are accepted and have no effect:"""


def meanings() -> dict[str, str]:
    """The meaning of each setting of Dassl and of this project."""
    declared = defaults.SETTINGS | datasets.SETTINGS | config.SETTINGS
    return {
        key: meaning for key, (_, _, *texts) in declared.items() for meaning in texts if meaning
    }


NUMBERS = re.compile(r"[≥\d].*|number|integer.*")


def accepted(limit: object) -> str:
    """The values of a setting in few words, without limits that only keep a typing error from
    filling the memory.
    """
    text = re.sub(r"text of at most .*", "text", str(limit))
    text = re.sub(r"a list of at most [\d,]+ values, each", "list, each", text)
    text = re.sub(r" from -1,000,000 to 1,000,000(\.0)?", "", text)
    text = re.sub(r" from (\S+) to \d+(,\d{3}){2,}(\.0)?", r" ≥ \1", text)
    text = re.sub(r" ≥ ", " ≥", text)
    text = re.sub(r" from (\d\S*) to (\S+)", r" \1–\2", text).replace(" from ", " ")
    text = re.sub(r"\b(an|a|one of) (?=integer|number|list|\w+,)", "", text)
    text = re.sub(r"(number|integer) (?=[-≥\d])", "", text)
    return (
        ""
        if text in ("text", "True or False")
        else text.replace("list, each text", "list of texts")
    )


def shown(default: object, limit: object) -> str:
    """A default; with a point if the setting takes real numbers."""
    real = (
        isinstance(default, int)
        and not isinstance(default, bool)
        and str(limit).startswith("a number")
    )
    return repr(float(default) if real else default)


def listed(key: str, default: object, limit: object, meaning: str) -> str:
    """The line of a setting."""
    texts = [text for text in (meaning, accepted(limit)) if text]
    return f"- `{key} {shown(default, limit)}`" + (f": {'; '.join(texts)}" if texts else "")


def settings(cfg, prefix: str = "") -> dict[str, tuple]:
    """The settings of a configuration by their full names: the default, and the limit or None."""
    found = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            found |= settings(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value, vars(cfg).get(LIMITS, {}).get(key)
    return found


def shared_limits() -> dict[str, str]:
    """The limits that most methods have for the keys of `SHARED`."""
    limits: dict[str, Counter[str]] = {key: Counter() for key in SHARED}
    for method in trainers.methods().values():
        for key in SHARED.keys() & method.Settings.schema().keys():
            limits[key][accepted(method.Settings.schema()[key])] += 1
    return {key: count.most_common(1)[0][0] for key, count in limits.items()}


def of_method(kind: type, shared: Mapping[str, str], left_out: Container[str] = ()) -> str:
    """A method's settings, without those of a key in `left_out`, and what its class says of them.
    The values that a setting accepts are left out if they are those of `shared` or a range.
    """
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    # Made by dataclasses
    text = "" if text.startswith(f"{kind.__name__}(") else " ".join(text.split())
    values = vars(kind())
    keys = []
    for key, limit in kind.schema().items():
        if key in left_out or key == "PREC":
            continue
        if (key, values[key]) in USUAL:
            keys.append(f"`{key}`")
            continue
        words = accepted(limit)
        words = "" if words == shared.get(key) or NUMBERS.fullmatch(words) else words
        keys.append(f"`{key} {shown(values[key], limit)}`" + (f" ({words})" if words else ""))
    return f"{', '.join(keys) or '–'}. {text}".strip()


def fit_options() -> dict[str, str]:
    """What each option of `tools/fit.py` means."""
    flags = {f"`{flag_of(one)}`": help_of(one).replace("%%", "%") for one in options_of_fit()}
    return {flag: text for flag, text in flags.items() if flag.startswith("`-")}


def page() -> str:
    cfg = get_cfg_default()
    config.extend_cfg(cfg)
    known = meanings()
    for name, method in trainers.methods().items():
        known |= dict.fromkeys(
            method.published_keys, f"Read by {name.partition('+')[0]} ([Methods](methods.md))"
        )
    common = {key: value for key, value in settings(cfg).items() if not key.startswith("TRAINER.")}
    groups: dict[str, list[tuple]] = {}
    for key, (default, limit) in common.items():
        if limit is not None:
            group = key.rpartition(".")[0].partition(".")[0] or "The run"
            groups.setdefault(group, []).append((key, default, limit, known.get(key, "")))
    groups["The run"].append(("TRAINER.NAME", "", "text", TRAINER_NAME))
    parts = [HEAD]
    for group, rows in groups.items():
        parts += [f"## {group}", "\n".join(listed(*row) for row in rows)]
    shared = shared_limits()
    lines = [
        f"- `{key}`: {'; '.join(filter(None, (meaning, shared[key])))}"
        for key, meaning in SHARED.items()
    ]
    parts += [METHODS, "\n".join(lines)]
    plugged = {}
    entries: dict[str, list[str]] = {}
    for name, method in sorted(trainers.methods().items(), key=lambda item: item[0].lower()):
        plugin, plus, over = name.partition("+")
        if plus:
            plugged.setdefault(plugin, (method, trainers.methods()[over].Settings.schema()))
            continue
        other = method.sections()[1:]
        also = f" (published: `TRAINER.{other[0]}`)" if other else ""
        entries.setdefault(f"{also}: {of_method(method.Settings, shared)}", []).append(name)
    for text, names in entries.items():
        sections = ", ".join(f"`TRAINER.{trainers.methods()[name].section()}`" for name in names)
        parts += [f"### {', '.join(names)}", sections + text]
    for plugin, (method, own) in plugged.items():
        parts += [f"### {plugin}", PLUGIN.format(plugin) + of_method(method.Settings, shared, own)]
    parts += [
        "## Options of fit",
        "\n".join(f"- {flag}: {text}" for flag, text in fit_options().items()),
    ]
    unread = [f"`{key}`" for key, (_, limit) in common.items() if limit is None]
    parts += [UNREAD, f"{', '.join(unread)}."]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    import tables

    PAGE.write_text(page())
    for name in tables.PAGES:
        (ROOT / name).write_text(tables.written((ROOT / name).read_text()))
