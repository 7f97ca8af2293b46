"""The arguments and environment variables of a script, checked."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError, choose
from common.start import ROOT

from ..configs import config_files, known_datasets
from ..methods import methods
from ..protocols import PROTOCOLS
from .table import ANY, MOVED, SCRIPTS, Script, own

ENVIRONMENT = """\
environment variables:
  DATA, OUT     folders of the datasets (data) and of the results (output)
  SHOTS         images of each class; for few-shot scripts several are possible: "4 8"
  CFG           YAML file in configs/trainers/METHOD/, instead of the script's
  BACKBONE      small, ViT-B/16, a weight file, ...: instead of the YAML file's
  PYTHON        the interpreter (python, or .venv/bin/python if no environment is active)
  PREPARE=1     download the dataset if it is missing
  DRY_RUN=1     print the commands and do nothing (also: --dry-run)
  QUIET=1       print errors and results only
  REPORT_TO     tensorboard,wandb,mlflow"""
FORMS = {  # of values: a pattern, and words for it
    "SEED": (r"[0-9]{1,9}( +[0-9]{1,9})*", "an integer, or several: '1 2 3'"),
    "SHOTS": (r"(-1|[1-9][0-9]{0,8})( +(-1|[1-9][0-9]{0,8}))*", "an integer (-1: all images)"),
    "EPOCHS": (r"[1-9][0-9]{0,8}", "an integer from 1 on"),
    "NCTX": (r"[1-9][0-9]{0,8}", "an integer from 1 on"),
    "WEIGHT": (r"[0-9]+(\.[0-9]*)?", "a number, such as 8.0"),
    "CTP": (r"end|middle|front", "end, middle or front"),
    "CSC": (r"True|False", "True or False"),
    "PROTOCOL": ("|".join(PROTOCOLS), f"one of {', '.join(PROTOCOLS)}"),
}


@dataclass(frozen=True)
class Call:
    """A script, and what the user gave it.

    Attributes:
        values: positional arguments and variables, by name.
        epochs: how many to train, or the one to test; empty: the script's.
        rest: KEY VALUE pairs, or the options of tools/reproduce.py.
    """

    script: Script
    values: dict[str, str]
    epochs: str
    rest: tuple[str, ...]
    data: Path
    output: Path
    backbone: str

    @property
    def method(self) -> str:
        return self.script.method or self.values["METHOD"]

    @property
    def cfg(self) -> str:
        """The YAML file that the user has chosen."""
        return self.values.get("CFG", "")


def script_name(path: str) -> str:
    """The name of a script in the table: its path below scripts/, without its ending."""
    return os.path.relpath(os.path.splitext(os.path.abspath(path))[0], ROOT / "scripts")


def find(name: str) -> Script:
    """The script of a name. The folder of any method may hold copies of this project's scripts.

    Raises:
        UsageError: there is none.
    """
    if name in SCRIPTS:
        return SCRIPTS[name]
    folder, _, kind = name.rpartition("/")
    if kind in ANY and (method := known_method(folder)):
        return own(method)[kind]
    raise UsageError(f"scripts/{name}.sh is not a script of this project", "see experiments/scripts/table.py")


def known_method(word: str) -> str:
    """The method of this name, in upper or lower case; empty if there is none. An exact match wins."""
    names = [name for name in methods() if name.lower() == word.lower()]
    return word if word in names else "".join(names[:1])


def form_of(script: Script) -> str:
    """The arguments of a script, as its usage shows them."""
    optional = "[EPOCHS] [KEY VALUE ...]"
    if script.steps == "reproduce":
        optional = "[OPTION ...]"
    elif "EPOCHS" in script.form or script.protocol == "zero_shot":
        optional = "[KEY VALUE ...]"
    return f"{script.form} {optional}".strip()


def help_text(name: str, script: Script) -> str:
    lines = [f"bash scripts/{name}.sh {form_of(script)}", script.does]
    lines += [f"This is a script of {script.repository}'s repository, with its settings."] if script.repository else []
    lines += [f"Note: {script.note}."] if script.note else []
    lines += ['SEED can be several: "1 2 3".'] if "SEED" in script.form.split() else []
    lines += ["EPOCHS: how many to train, or the one to test."] if "EPOCHS" in form_of(script) else []
    variables = [f"  {key:13} (default: {value})" for key, value in script.variables.items()]
    return "\n".join([*lines, "", ENVIRONMENT, *variables])


def parse(name: str, words: list[str], environment: Mapping[str, str]) -> Call:
    """What the user gave a script.

    Raises:
        UsageError: a wrong number of arguments, or a wrong value. It has the script's usage.
    """
    script = find(name)
    usage = f"{name}.sh takes {form_of(script)}"
    other = MOVED.get(name) or script.note
    if name in MOVED and words and known_method(words[0]):
        raise UsageError(f"{usage}, as {script.repository}'s own script", other)
    positions = script.form.replace("[CFG]", "").split()
    if len(words) < len(positions):
        raise UsageError(f"{usage}, and got {len(words)} of these", other or f"see bash scripts/{name}.sh --help")
    values = dict(zip(positions, words, strict=False))
    rest = words[len(positions) :]
    if "[CFG]" in script.form and rest and "." not in rest[0]:
        values["CFG"] = rest.pop(0)
    epochs = values.get("EPOCHS", "")
    if "[EPOCHS]" in form_of(script) and rest and rest[0].isdecimal():
        epochs = rest.pop(0)
    given = {key: environment[key] for key in ("CFG", "SHOTS", *script.variables) if environment.get(key)}
    values = {**script.variables, **given, **values, **({"EPOCHS": epochs} if epochs else {})}
    try:
        check(values)
        check_pairs(script, rest)
    except UsageError as error:
        raise UsageError(f"{usage}: {error}", other) from error
    here = Path() if Path.cwd() == ROOT else Path.cwd()  # the user's relative paths; the defaults are in ROOT
    folders = {"data": environment.get("DATA"), "output": environment.get("OUT")}
    paths = {key: here / os.path.expanduser(path) if path else Path(key) for key, path in folders.items()}
    if "WEIGHTS" in values and not re.match("https?://", values["WEIGHTS"]):
        values["WEIGHTS"] = str(here / os.path.expanduser(values["WEIGHTS"]))
    backbone = environment.get("BACKBONE", "")
    if Path(backbone).is_file():
        backbone = str(here / backbone)
    return Call(script, values, epochs, tuple(rest), **paths, backbone=backbone)


def check(values: dict[str, str]) -> None:
    """Check values by their names; METHOD becomes the exact name.

    Raises:
        UsageError: one is wrong.
    """
    for key, value in values.items():
        if key in FORMS and not re.fullmatch(FORMS[key][0], value):
            raise UsageError(f"{key} is {value!r}", f"give {FORMS[key][1]}")
        if key in ("DATASET", "SOURCE"):
            choose(value, known_datasets(), "dataset")
    if "METHOD" in values:
        choose(known_method(values["METHOD"]) or values["METHOD"], methods(), "method")
        values["METHOD"] = known_method(values["METHOD"])
        if values["METHOD"] == "ZeroshotCLIP":
            raise UsageError("ZeroshotCLIP has nothing to train", "use scripts/zsclip/zeroshot.sh DATASET")


def check_pairs(script: Script, rest: list[str]) -> None:
    """Raise UsageError for words after the arguments that are not KEY VALUE pairs."""
    if script.steps != "reproduce":
        wrong = [key for key in rest[::2] if not re.fullmatch(r"[A-Z][A-Z0-9_.]*", key)]
        if wrong or len(rest) % 2:
            raise UsageError(
                f"{' '.join(rest)!r} is not KEY VALUE ...", "what may follow are settings and their values"
            )


def check_cfg(method: str, cfg: str) -> None:
    """Raise UsageError if a method has no YAML file of this name."""
    choose(cfg, [file.stem for file in config_files(method)], f"YAML file configs/trainers/{method}")
