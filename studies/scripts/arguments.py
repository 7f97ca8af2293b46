"""The arguments and environment variables of a script, checked."""

import os
import re
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError, check_dataset_name, check_name
from common.start import ROOT
from configs.files import config_files, known_datasets
from configs.methods import methods
from inference.arguments import add_plugin_option

from ..protocols import PROTOCOLS
from .table import SCRIPTS, Script

ENVIRONMENT = """\
environment variables:
  DATA, OUT     folders of the datasets (data) and of the results (output)
  SHOTS         images of each class; for few-shot scripts several are possible: "4 8"
  CFG           YAML file in configs/trainers/METHOD/, instead of the script's
  BACKBONE      small, ViT-B/16, a weight file, ...: instead of the YAML file's
  PLUGIN        Python file with METHOD (train.py --plugin): it is run
  PYTHON        the interpreter (python, or .venv/bin/python if no environment is active)
  PREPARE=1     download the dataset if it is missing
  DRY_RUN=1     print the commands and do nothing (also: --dry-run)
  QUIET=1       print errors and results only
  REPORT_TO     tensorboard,wandb,mlflow"""
# Values that the script itself reads: a pattern, and words for it. train.py checks the others
FORMS = {
    "SEED": (r"[0-9]{1,9}( +[0-9]{1,9})*", "an integer below 10^9, or several: '1 2 3'"),
    "SHOTS": (r"(-1|[1-9][0-9]{0,8})( +(-1|[1-9][0-9]{0,8}))*", "an integer (-1: all images)"),
    "EPOCHS": (r"[1-9][0-9]{0,8}", "an integer from 1 on"),
}


@dataclass(frozen=True)
class Call:
    """A script, and what the user gave it."""

    script: Script
    values: dict[str, str]  # positional arguments and variables, by name
    rest: tuple[str, ...]  # KEY VALUE pairs, or the options of tools/reproduce.py
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


def is_set(variable: str) -> bool:
    """Whether an environment variable asks for something: 0 does not."""
    return os.environ.get(variable, "") not in ("", "0")


def find(path: str) -> str:
    """The name of a script in the table: its path below scripts/, without its ending."""
    name = os.path.relpath(
        Path(path).parent.resolve() / Path(path).stem, (ROOT / "scripts").resolve()
    )
    if name not in SCRIPTS:
        remedy = "see those in scripts/, such as scripts/mpl/base2new_train.sh --help"
        raise UsageError(f"{path or 'run.sh alone'} is not a script of this project", remedy)
    return name


def help_text(name: str, script: Script) -> str:
    lines = [f"bash scripts/{name}.sh {script.usage}", script.does]
    lines += (
        [f"This is a script of {script.repository}'s repository, with its settings."]
        if script.repository
        else []
    )
    lines += [f"Note: {script.note}."] if script.note else []
    lines += ['SEED can be several: "1 2 3".'] if "SEED" in script.form.split() else []
    lines += ["EPOCHS: how many to train, or the one to test."] if "EPOCHS" in script.usage else []
    variables = [f"  {key:13} (default: {value})" for key, value in script.variables.items()]
    unread = ("SHOTS", "QUIET", "REPORT_TO") if script.steps == "reproduce" else ()
    read = [line for line in ENVIRONMENT.splitlines() if not line.strip().startswith(unread)]
    return "\n".join([*lines, "", *read, *variables])


def parse(name: str, words: list[str], environment: Mapping[str, str]) -> Call:  # noqa: C901
    """The arguments and variables of a script; an error has its usage."""
    script = SCRIPTS[name]
    usage = f"{name}.sh takes {script.usage}"
    if environment.get("PLUGIN"):
        add_plugin_option(parser := ArgumentParser())
        parser.parse_args(["--plugin", environment["PLUGIN"]])
    positions = script.positions.replace("[CFG]", "").split()
    if len(words) < len(positions):
        raise UsageError(
            f"{usage}, and got {len(words)} of these",
            script.note or f"see scripts/{name}.sh --help",
        )
    given = {
        key: environment[key] for key in ("CFG", "SHOTS", *script.variables) if environment.get(key)
    }
    values = {**script.variables, **given, **dict(zip(positions, words, strict=False))}
    rest = words[len(positions) :]
    # As a KEY is
    if "[CFG]" in script.form and rest and "." not in rest[0] and not rest[0].isupper():
        values["CFG"] = rest.pop(0)
    if "[EPOCHS]" in script.usage and rest and rest[0].isdecimal():
        values["EPOCHS"] = rest.pop(0)
    try:
        check(values)
        if values.get("CFG"):
            files = config_files(script.method or values["METHOD"])
            check_name(values["CFG"], [file.stem for file in files], "YAML file")
        if script.steps != "reproduce" and (
            len(rest) % 2 or any(key.startswith("-") for key in rest[::2])
        ):
            raise UsageError(f"{' '.join(rest)!r} is not KEY VALUE ...")
        if script.steps != "reproduce" and "OUTPUT_DIR" in rest[::2]:
            raise UsageError(
                "OUTPUT_DIR is among the KEY VALUE pairs",
                "name the folder of all results by OUT=FOLDER",
            )
    except UsageError as error:
        raise UsageError(f"{usage}: {error}", script.note) from error
    # The user's relative paths; the defaults are in ROOT
    here = Path() if Path.cwd() == ROOT else Path.cwd()
    folders = {
        "data": values.pop("DATA", None) or environment.get("DATA"),
        "output": environment.get("OUT"),
    }
    paths = {
        key: here / os.path.expanduser(path) if path else Path(key) for key, path in folders.items()
    }
    for key in {"WEIGHTS", "MODEL_DIR"} & set(values):
        values[key] = str(here / os.path.expanduser(values[key]))
    backbone = environment.get("BACKBONE", "")
    if Path(backbone).is_file():
        backbone = str(here / backbone)
    return Call(script, values, tuple(rest), **paths, backbone=backbone)


def check(values: dict[str, str]) -> None:
    """Check values by their names; METHOD becomes the exact name."""
    for key, value in values.items():
        if key in FORMS and not re.fullmatch(FORMS[key][0], value):
            raise UsageError(f"{key} is {value!r}", f"give {FORMS[key][1]}")
        if key in ("DATASET", "SOURCE"):
            check_dataset_name(value, known_datasets())
    if "PROTOCOL" in values:
        check_name(values["PROTOCOL"], PROTOCOLS, "protocol")
    if "METHOD" in values:
        given = values["METHOD"]
        exact = {name.lower(): name for name in methods()} | {name: name for name in methods()}
        method = values["METHOD"] = exact.get(given) or exact.get(given.lower(), given)
        check_name(method, methods(), "method")
        if not methods()[method].learns:
            remedy = f"test it by python train.py --trainer {method} --eval-only, or in a study"
            raise UsageError(f"{method} has nothing to train", remedy)
