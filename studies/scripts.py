"""Write the scripts in scripts/: `make scripts`.

scripts.yaml has the fields of `Script` for each path: published scripts under their paths, and our
own. Every script shows the calls of train.py that it makes; scripts/start.sh reads its arguments.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from common.files import write_text
from common.start import ROOT
from configs.files import config_files, config_folder
from configs.recipes import SMALL, Recipe, recipe, recipes_of

from .protocols import PROTOCOLS, SEEDS

FOLDER = ROOT / "scripts"
WIDTH = 92  # of a line of a command
QUOTED = '"$METHOD"'


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
    table = yaml.safe_load(Path(__file__).with_name("scripts.yaml").read_text())
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
    rest = "[OPTION ...]" if script.steps == "reproduce" else "[KEY VALUE ...]"
    lines = ["#!/usr/bin/env bash", f"# {script.does}"]
    lines.append(f"# bash scripts/{name}.sh {script.arguments} {rest}".replace("  ", " "))
    if script.repository:
        lines.append(f"# This is a script of {script.repository}'s repository, with its settings.")
    lines += ["", f'ARGUMENTS="{script.arguments}"']
    if script.note:
        lines.append(f'NOTE="{script.note}"')
    lines += [f'source "$(dirname "$0")/{"../" * name.count("/")}start.sh"', ""]
    lines += [f"{key}=${{{key}:-{value}}}" for key, value in script.variables.items()]
    if script.steps == "reproduce":
        lines += reproduce(script)
    elif script.protocol == "zero_shot":
        lines += zero_shot(script)
    elif script.protocol == "ood":
        lines += detection(script)
    else:
        lines += runs(script)
    return "\n".join(lines) + "\n"


def runs(script: Script) -> list[str]:
    """The lines of the runs of a protocol: loops, the YAML file, and the commands."""
    before: list[str] = []  # the loops
    loops: list[str] = []
    if len(script.datasets) > 1:
        loops.append("for DATASET in $DATASETS; do")
        before += quoted("DATASETS", script.datasets)
    elif script.datasets:
        before.append(f"DATASET={script.datasets[0]}")
    elif "DATASET" not in script.positions:
        before.append("DATASET=$SOURCE")
    seeds = "$SEED" if "SEED" in script.positions else " ".join(map(str, SEEDS))
    loops.append(f"for seed in {seeds}; do")
    shots = script.shots or PROTOCOLS[script.protocol].shots
    default = "$SHOTS"
    if "SHOTS" not in script.positions:
        default = f"${{SHOTS:-{' '.join(map(str, shots))}}}"
    if len(shots) > 1:
        loops.append(f"for shots in {default}; do")
    else:
        before.append(f"shots={default}")
    inside = [line for step in script.steps for line in command(script, int(step))]
    chosen = choice(script)
    by_shots = len(shots) > 1 and any("$shots" in line for line in chosen)
    by_dataset = len(script.datasets) > 1 and any("$DATASET" in line for line in chosen)
    if by_shots or by_dataset:
        inside = [*chosen, *inside]
    else:
        before += chosen
    return [*before, *nested(loops, inside)]


def nested(loops: list[str], inside: list[str]) -> list[str]:
    """The lines within the loops."""
    if not loops:
        return inside
    body = [f"    {line}" if line else "" for line in nested(loops[1:], inside)]
    return [loops[0], *body, "done"]


def choice(script: Script) -> list[str]:
    """The lines that choose the YAML file `cfg`, its `settings`, and the `epoch` to test."""
    tests = script.protocol == "ood" or any(script.steps)
    if not script.method:
        dataset = "$SOURCE" if "SOURCE" in script.variables else "$DATASET"
        lines = [f'recipe {script.protocol} "{dataset}" "$shots"']
        return [*lines, "epoch=${EPOCHS:-}"] if tests else lines
    if "CFG" in script.form.split():
        lines = ["cfg=$CFG"]
        published = "case $cfg in small*) ;; *) epoch=${{EPOCHS:-{}}} ;; esac"
    else:
        recipes = recipes_for(script)
        lines = [*cases(recipes, script), *small(script), *settings_of(recipes)]
        published = f'if [ "$cfg" = {recipes[-1].cfg} ]; then epoch=${{{{EPOCHS:-{{}}}}}}; fi'
    if tests:
        lines.append("epoch=${EPOCHS:-}")
        if script.epochs:
            names = " | ".join(script.epochs)
            (other,) = set(script.epochs.values())
            lines.append(f"loadep={script.epoch}")
            lines.append(f"case $DATASET in {names}) loadep={other} ;; esac")
            lines.append(published.format("$loadep"))
        elif script.epoch:
            lines.append(published.format(script.epoch))
    return lines


def recipes_for(script: Script) -> list[Recipe]:
    """The recipes of the script's method in its protocol; the last one is for all other datasets.
    None if METHOD or CFG is an argument.
    """
    if not script.method or "CFG" in script.form.split():
        return []
    if script.cfg:
        return [Recipe(script.cfg)]
    protocol = script.protocol if script.protocol in PROTOCOLS else "few_shot"
    found = recipes_of(script.method, protocol) or [recipe(script.method, protocol)]
    if script.datasets or "SOURCE" in script.variables:  # all are trained on what the script says
        source = script.datasets[0] if script.datasets else script.variables["SOURCE"]
        assert {entry.fits(source, 16) for entry in found} == {True}, script
    return found


def cases(recipes: list[Recipe], script: Script) -> list[str]:
    """The lines that choose the YAML file by the dataset and the images of each class."""
    if len({entry.cfg for entry in recipes}) == 1:
        return [f"cfg=${{CFG:-{recipes[0].cfg}}}"]
    by_shots = any(entry.shots for entry in recipes)
    lines = [f"case $DATASET{'-$shots' if by_shots else ''} in"]
    for entry in recipes:
        lines.append(f"    {pattern(entry, by_shots)}) cfg=${{CFG:-{entry.cfg}}} ;;")
    return [*lines, "esac"]


def pattern(entry: Recipe, by_shots: bool = False) -> str:
    """The pattern of bash for the datasets, or DATASET-SHOTS, of a recipe."""
    datasets = entry.datasets or ("*",)
    if not by_shots or datasets == ("*",) and not entry.shots:
        return " | ".join(datasets)
    return " | ".join(f"{name}-{number}" for name in datasets for number in entry.shots or ("*",))


def small(script: Script) -> list[str]:
    """The lines of the YAML file for the small CLIP, if the method has one."""
    names = [file.stem for file in config_files(script.method)]
    mine = [name for name in SMALL[script.protocol == "cross_dataset" :: -1] if name in names]
    if not mine:
        return []
    return [f'if [ "$BACKBONE" = small ]; then cfg=${{CFG:-{mine[0]}}}; fi']


def settings_of(recipes: list[Recipe]) -> list[str]:
    """The lines of the settings that the authors add to the YAML file."""
    given = [entry for entry in recipes if entry.settings]
    if not given:
        return []
    (entry,) = given
    lines = quoted("settings", entry.settings)
    for other in recipes:
        if other.datasets and other.cfg == entry.cfg:
            lines.append(f"case $DATASET in {pattern(other)}) settings= ;; esac")
    return [*lines, f'if [ "$cfg" != {entry.cfg} ]; then settings=; fi']


def quoted(name: str, words: Sequence[str]) -> list[str]:
    """The lines of a variable that has several words."""
    return wrapped([f'{name}="{words[0]}', *words[1:-1], f'{words[-1]}"'])


def command(script: Script, step: int) -> list[str]:
    """The lines of the call of train.py of one step of a protocol."""
    steps = PROTOCOLS[script.protocol].steps
    classes = steps[min(step, len(steps) - 1)].classes
    lines: list[str] = []
    source = "$SOURCE" if "SOURCE" in script.variables else "$DATASET"
    trained = place(script, 0, source if step else "$DATASET")
    options = [f'--output-dir "{trained}"']
    if step:
        lines += [f"trained={trained}", f"tested={place(script, step, '$DATASET')}"]
        lines.append('check_finished "$trained"')
        options = ['--output-dir "$tested"', '--eval-only --model-dir "$trained"']
        options.append('${epoch:+--load-epoch "$epoch"}')
    pairs = ['DATASET.NUM_SHOTS "$shots"']
    if classes != "all":
        pairs.append(f"DATASET.SUBSAMPLE_CLASSES {classes}")
    if not script.method or any(entry.settings for entry in recipes_for(script)):
        pairs.append("$settings")
    pairs += pairs_of(script.settings)
    if not step:
        pairs += pairs_of(script.train_settings)
        pairs.append('${EPOCHS:+OPTIM.MAX_EPOCH "$EPOCHS"}')
        if "EPOCHS" in script.positions:
            pairs[-1] = 'OPTIM.MAX_EPOCH "$EPOCHS"'
    lines += call(script, ['--seed "$seed"'], options, pairs)
    if step and classes == "new":
        lines.append('harmonic_mean "$trained" "$tested"')
    return lines


def place(script: Script, step: int, dataset: str) -> str:
    """The folder of the results of a step."""
    templates = script.folders or [step.folder for step in PROTOCOLS[script.protocol].steps]
    words = {key: f"${{{key}}}" for key in (*script.positions, *script.variables)}
    words |= {"name": f"{script.method or '$METHOD'}/${{cfg}}"}
    words |= {"dataset": dataset, "shots": "${shots}", "seed": "$seed"}
    folder = templates[step].format(**words)
    return "$OUT/" + re.sub(r"\$\{(\w+)\}(?=/|$)", r"$\1", folder)


def pairs_of(settings: str) -> list[str]:
    """KEY VALUE pairs; a value in braces is that of a variable."""
    words = settings.replace("{", '"$').replace("}", '"').split()
    return [f"{key} {value}" for key, value in zip(words[::2], words[1::2], strict=True)]


def call(script: Script, first: list[str], options: list[str], pairs: list[str]) -> list[str]:
    """The lines of a call of train.py."""
    words = ['run python train.py --root "$DATA"', *first]
    if script.method:
        folder = config_folder(script.method).name
        yaml_file = f"configs/trainers/{folder}/$cfg.yaml"
        words.append(f"--trainer {script.method}")
    else:
        yaml_file = "$yaml"
        words.append('--trainer "$METHOD"')
    words.append('--dataset-config-file "configs/datasets/$DATASET.yaml"')
    words.append(f'--config-file "{yaml_file}"')
    return wrapped([*words, *options, '"${OPTIONS[@]}"', *pairs, '"$@"'])


def wrapped(words: list[str]) -> list[str]:
    """Words as the lines of one command of bash."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < WIDTH - 10:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"    {word}")
    return lines


def zero_shot(script: Script) -> list[str]:
    """The lines of the test of zero-shot CLIP."""
    lines = ["cfg=$CFG"]
    if "[CFG]" in script.form:
        lines = [*cases(recipes_for(script), script), *small(script)]
    lines.append("folder=$OUT/ZeroshotCLIP/$cfg/$DATASET")
    lines.append('case " $* " in')
    lines += [f'    *" {part} "*) folder=$folder/{part} ;;' for part in ("base", "new")]
    lines.append("esac")
    return [*lines, *call(script, [], ['--output-dir "$folder"', "--eval-only"], [])]


def detection(script: Script) -> list[str]:
    """The lines of the test of the prompts in MODEL_DIR, which also detects images of OOD."""
    lines = choice(script)
    options = ['--output-dir "$MODEL_DIR/ood/${OOD}_T$T"', '--eval-only --model-dir "$MODEL_DIR"']
    options += ['${epoch:+--load-epoch "$epoch"}', '--ood "$OOD"']
    return [*lines, *call(script, [], options, pairs_of(script.settings))]


def reproduce(script: Script) -> list[str]:
    """The lines of the call of tools/reproduce.py that tests published prompts."""
    seeds = f"--seeds {' '.join(map(str, SEEDS))} --shots"
    protocol = script.protocol or '"$PROTOCOL"'
    lines: list[str] = []
    chosen = ["--seeds $SEED"]
    if "PROTOCOL" in script.positions:
        lines += ['seeds="--seeds $SEED"']
        lines += [f'if [ "$PROTOCOL" = few_shot ]; then seeds="{seeds} $SEED"; fi']
        chosen = ["$seeds"]
    elif "SHOTS" in script.positions:
        chosen = [seeds.removesuffix(" --shots"), '--shots "$SHOTS"']
    words = [f"run python tools/reproduce.py {script.method or QUOTED}"]
    words += ['--checkpoints "$WEIGHTS"', f"--protocol {protocol}", '--datasets "$DATASET"']
    words += [*chosen, '--root "$DATA"', '--output "$OUT"']
    if script.cfg:
        words.append(f'--cfg "${{CFG:-{script.cfg}}}"')
    else:
        words.append('${CFG:+--cfg "$CFG"}')
    if script.epoch:
        lines.append(f"epoch={script.epoch}")
        lines.append('if [ -n "$CFG" ] || [ "$BACKBONE" = small ]; then epoch=; fi')
        words.append('${epoch:+--epoch "$epoch"}')
    return [*lines, *wrapped([*words, '${BACKBONE:+--backbone "$BACKBONE"}', '"$@"'])]


def main() -> None:
    for name, script in read_table().items():
        write_text(FOLDER / f"{name}.sh", text(name, script))


if __name__ == "__main__":
    main()
