"""The scripts in scripts/: `make scripts` writes them, and `main` prints the settings that those in
scripts/any/ ask for.

published/scripts.yaml has the fields of `Script` for each path: published scripts under their
paths, and our own. script.jinja shows the calls of train.py; scripts/start.sh reads the arguments.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from common.errors import check_name
from common.files import write_text
from common.start import ROOT, Parser
from configs.files import CONFIGS, config_folder
from configs.methods import methods
from configs.recipes import Recipe, recipe, recipes_of, small_cfg
from inference.arguments import add_plugin_option

from .study import PROTOCOLS, SEEDS, Protocol, by_key

HERE = Path(__file__).parent
FOLDER = ROOT / "scripts"


@dataclass(frozen=True)
class Script:
    """The runs of a script.

    Words in braces in `settings` and `folders` name positional arguments, variables, and {dataset},
    {name} (METHOD/CFG), {shots} and {seed} of a run.
    """

    does: str = ""  # one sentence for --help
    # Its positional arguments. EPOCHS and KEY VALUE pairs may follow those of a training run or a
    # test
    form: str = ""
    # A key of `PROTOCOLS`; `zero_shot` tests zero-shot CLIP, `ood` prompts in a folder, with --ood;
    # empty: an argument.
    protocol: str = ""
    # 0: the protocol's training run, 1: its test; reproduce: of published prompts
    steps: tuple[int, ...] | str = (0,)
    method: str = ""  # empty: METHOD is the first argument
    cfg: str = ""  # the YAML file; empty: the method's recipe for the protocol
    datasets: tuple[str, ...] = ()  # one run for each, unless DATASET is an argument
    shots: tuple[int, ...] = ()  # the same; empty: the protocol's
    seeds: tuple[int, ...] = SEEDS  # the same, unless SEED is an argument
    # The one that the test loads, if the YAML file is the script's; None: the best or newest
    epoch: int | None = None
    epochs: Mapping[str, int] = field(default_factory=dict)  # the same, for single datasets
    settings: str = ""  # more settings of all runs: KEY VALUE pairs
    train_settings: str = ""  # more settings of training runs
    # Environment variables with their defaults
    variables: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()  # those of the steps, where they are not the protocol's
    repository: str = ""  # of the published script; empty: the script is ours
    note: str = ""  # printed with each start: what users of another form have to know

    @property
    def positions(self) -> list[str]:
        """All positional arguments."""
        return [*([] if self.method else ["METHOD"]), *self.form.split()]

    @property
    def arguments(self) -> str:
        """The positional arguments, required and optional."""
        no_epochs = self.steps == "reproduce" or self.protocol in ("zero_shot", "ood")
        optional = [] if no_epochs or "EPOCHS" in self.form else ["[EPOCHS]"]
        return " ".join([*self.positions, *optional])


def read_table() -> dict[str, Script]:
    """The scripts by their paths below scripts/, without .sh."""
    table = yaml.safe_load(
        Path(__file__).with_name("published").joinpath("scripts.yaml").read_text()
    )
    scripts: dict[str, Script] = {}
    for name, entry in table.items():
        like = scripts.get(entry.pop("like", f"any/{Path(name).name}"), Script())
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        scripts[name] = replace(like, **values)
    return scripts


def text(name: str, script: Script) -> str:
    """The content of a script."""
    shots = script.shots or PROTOCOLS.get(script.protocol, Protocol(())).shots
    recipes = recipes_of_script(script)
    by_shots = any(entry.shots for entry in recipes)
    several = len(shots) > 1
    seeds = " ".join(map(str, script.seeds))
    given = "$SHOTS"
    if "SHOTS" not in script.positions:
        given = f"${{SHOTS:-{' '.join(map(str, shots))}}}"
    loops = []
    if len(script.datasets) > 1:
        loops.append(f"for DATASET in {' '.join(script.datasets)}")
    loops.append(f"for seed in {'$SEED' if 'SEED' in script.positions else seeds}")
    if several:
        loops.append(f"for shots in {given}")
    words: dict[str, Any] = {"name": name, "script": script, "positions": script.positions}
    words["rest"] = "[OPTION ...]" if script.steps == "reproduce" else "[KEY VALUE ...]"
    words |= {"recipes": recipes, "by_shots": by_shots, "pattern": pattern}
    words |= {"seeds": seeds, "shots": given, "several_shots": several, "loops": loops}
    words["tests"] = script.protocol == "ood" or any(script.steps)
    words["inside"] = several and (by_shots or not script.method) or bool(script.epochs)
    words["source"] = "$SOURCE" if "SOURCE" in script.variables else "$DATASET"
    words["pairs"] = pairs_of(script.settings)
    words["yaml"] = "$yaml"
    if script.method:
        words["yaml"] = f"configs/trainers/{config_folder(script.method).name}/$cfg.yaml"
        words["small"] = small_cfg(script.method, script.protocol)
    if script.protocol in PROTOCOLS:
        words["runs"] = [run(script, step) for step in script.steps]
    return template().render(words)


@cache
def template() -> Any:
    """The template of all scripts."""
    from jinja2 import Environment, FileSystemLoader  # a script that runs does not need it

    templates = Environment(loader=FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True)
    return templates.get_template("script.jinja")


def recipes_of_script(script: Script) -> list[Recipe]:
    """The recipes of the script's method in its protocol; the last one is for all other datasets.
    None if METHOD or CFG is an argument.
    """
    if not script.method or "CFG" in script.positions:
        return []
    if script.cfg:
        return [Recipe(script.cfg)]
    protocol = script.protocol if script.protocol in PROTOCOLS else "few_shot"
    found = recipes_of(script.method, protocol) or [recipe(script.method, protocol)]
    if script.datasets or "SOURCE" in script.variables:  # the script says which one is the source
        assert len(found) == 1 and not found[0].datasets, script
    return found


def pattern(entry: Recipe, by_shots: bool = False) -> str:
    """The pattern of bash for the datasets, or DATASET-SHOTS, of a recipe."""
    datasets = entry.datasets or ("*",)
    shots = entry.shots or ("*",)
    if not by_shots or (datasets, shots) == (("*",), ("*",)):
        return " | ".join(datasets)
    return " | ".join(f"{name}-{number}" for name, number in product(datasets, shots))


def run(script: Script, step: int | str) -> dict[str, str]:
    """The folders and settings of a step of the script's protocol; none for published prompts."""
    if step not in (0, 1, 2):
        return {}
    steps = PROTOCOLS[script.protocol].steps
    classes = steps[min(int(step), len(steps) - 1)].classes
    templates = script.folders or [planned.folder for planned in steps]
    words = {key: f"${{{key}}}" for key in (*script.positions, *script.variables)}
    words |= {"name": f"{script.method or '$METHOD'}/${{cfg}}"}
    words |= {"dataset": "$DATASET", "shots": "${shots}", "seed": "$seed"}
    source = "$SOURCE" if "SOURCE" in script.variables else "$DATASET"

    def place(template: str, **more: str) -> str:
        folder = template.format(**words | more)
        return "$OUT/" + re.sub(r"\$\{(\w+)\}(?=/|$)", r"$\1", folder)

    pairs = 'DATASET.NUM_SHOTS "$shots"'
    if classes != "all":
        pairs += f" DATASET.SUBSAMPLE_CLASSES {classes}"
    return {
        "folder": place(templates[int(step)]),
        "trained": place(templates[0], dataset=source) if step else "",
        "pairs": pairs,
        "more": "" if step else script.train_settings,
    }


def pairs_of(settings: str) -> list[str]:
    """KEY VALUE pairs; a value in braces is that of a variable."""
    words = settings.replace("{", '"$').replace("}", '"').split()
    return list(map(" ".join, by_key(words).items()))


def write_scripts() -> None:
    for name, script in read_table().items():
        path = FOLDER / f"{name}.sh"
        path.parent.mkdir(exist_ok=True)
        write_text(path, text(name, script))


def main(argv: list[str] | None = None) -> None:
    """Print the exact name of METHOD, its YAML file, and its settings, a line of each."""
    parser = Parser(description="Print the settings of a method in a protocol.")
    for name in ("method", "protocol", "dataset"):
        parser.add_argument(name)
    parser.add_argument("shots", type=int, help="images of each class")
    parser.add_argument("--cfg", default="", help="the YAML file that the user has chosen")
    parser.add_argument("--backbone", default="", help="small, ViT-B/16, ...")
    add_plugin_option(parser)
    args = parser.parse_args(argv)
    used_name = exact_name(args.method)
    used = recipe(used_name, args.protocol, args.dataset, args.shots, args.cfg, args.backbone)
    print(used_name)
    folder = config_folder(used_name)
    place = ROOT if folder.is_relative_to(ROOT) else Path()
    print(os.path.relpath(folder, place), f"{used.cfg}.yaml", sep="/")
    print(*used.settings)


def exact_name(method: str) -> str:
    """The name of a method in any case. Only a plug-in's, such as DePT+MPL, waits for torch."""
    names = [folder.name for folder in (CONFIGS / "trainers").iterdir() if folder.is_dir()]
    if method.lower() not in map(str.lower, names):
        names = list(methods())
    exact = {name.lower(): name for name in names}.get(method.lower(), method)
    check_name(exact, names, "method")
    return exact


if __name__ == "__main__":
    write_scripts()
