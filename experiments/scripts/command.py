"""Start a script of scripts/: calls of train.py, one after another, and a line for each result."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from common.errors import UsageError
from common.start import ROOT

from .. import results
from ..configs import CONFIGS, config_folder
from ..protocols import PROTOCOLS, SEEDS, arguments, recipe
from .arguments import Call, check_cfg, find, form_of, help_text, parse, script_name


@dataclass(frozen=True)
class Run:
    """A call of train.py.

    Attributes:
        trained: folder of the training run whose prompts it tests; None: it trains.
        arguments: of train.py.
    """

    dataset: str
    folder: Path
    trained: Path | None
    arguments: list[str]


def main(argv: list[str] | None = None) -> None:
    """Run a script: its path, and its arguments.

    Raises:
        UsageError: wrong arguments.
    """
    path, *words = (sys.argv[1:] if argv is None else argv) or [""]
    if not path:
        raise UsageError(
            "run.sh alone is not a script of this project: the others call it",
            "see bash scripts/mpl/base2new_train.sh --help",
        )
    name = script_name(path)
    if "--help" in words or "-h" in words:
        print(help_text(name, find(name)))
        return
    dry = "--dry-run" in words or os.environ.get("DRY_RUN", "") not in ("", "0")
    call = parse(name, [word for word in words if word != "--dry-run"], os.environ)
    if call.script.note:
        print(f"note: {call.script.note}", file=sys.stderr)
    if dry and Path.cwd() != ROOT:
        print(shlex.join(["cd", str(ROOT)]), flush=True)
    if call.script.steps == "reproduce":
        execute([[*reproduce(call), *(["--dry-run"] if dry else [])]])
        return
    runs = list(runs_of(call))
    programs = [["train.py", *run.arguments] for run in runs]
    if dry:
        print("\n".join(shlex.join(["python", *program]) for program in programs))
        return
    check_runs(call, runs)
    source = call.values.get("SOURCE")
    if source and source == call.values.get("DATASET"):
        print(f"Source and target are both {source}: a rehearsal, no cross-dataset result")
    if os.environ.get("PREPARE") == "1":
        datasets = dict.fromkeys(run.dataset for run in runs)
        execute(["tools/prepare.py", dataset, "--root", str(call.data)] for dataset in datasets)
    # What train.py says if the folder of a run holds one with other settings: its own option is not the script's.
    remedy = f"delete that folder, or set OUT; {name}.sh takes {form_of(call.script)}"
    execute(programs, MPL_OTHER_FOLDER=remedy)
    report(runs)


def runs_of(call: Call) -> Iterator[Run]:
    """The calls of train.py of a script, in order."""
    script, values = call.script, call.values
    if script.protocol == "zero_shot":
        yield zero_shot(call)
        return
    protocol = PROTOCOLS[script.protocol]
    datasets = script.datasets or (values.get("DATASET") or values["SOURCE"],)
    seeds = list(map(int, values["SEED"].split())) if "SEED" in values else SEEDS
    shots = list(map(int, values["SHOTS"].split())) if "SHOTS" in values else script.shots or protocol.shots
    for dataset, seed, number in product(datasets, seeds, shots):
        for step in script.steps:
            assert isinstance(step, int)
            yield run(call, step, dataset, seed, number)


def run(call: Call, step: int, dataset: str, seed: int, shots: int) -> Run:
    """One run: a step of the script's protocol."""
    script, steps = call.script, PROTOCOLS[call.script.protocol].steps
    tests = step > 0
    source = call.values.get("SOURCE", dataset) if tests else dataset
    default = script.cfg or recipe(call.method, script.protocol, source, shots).cfg
    cfg = call.cfg or ("" if call.backbone == "small" else script.cfg)
    used = recipe(call.method, script.protocol, source, shots, cfg, call.backbone)
    templates = script.folders or [each.folder for each in steps]

    def folder(step: int, dataset: str) -> Path:
        words = {**call.values, "dataset": dataset, "name": f"{call.method}/{used.cfg}", "seed": seed}
        return call.output / templates[step].format(**words, shots=script.shots_name.format(**call.values, shots=shots))

    trained = folder(0, source) if tests else None
    options: list = ["--eval-only", "--model-dir", trained] if trained else []
    settings = [*used.settings, *script.settings.format(**call.values).split()]
    if tests:
        published = (
            script.epochs.get(dataset, script.epoch) if used.cfg == default or "CFG" in script.form.split() else None
        )
        if epoch := call.epochs or published:
            options += ["--load-epoch", epoch]
    else:
        settings += script.train_settings.split()
        settings += ["OPTIM.MAX_EPOCH", call.epochs] if call.epochs else []
    words = arguments(
        folder=folder(step, dataset),
        dataset=dataset,
        seed=seed,
        options=(*options, *extras()),
        shots=shots,
        classes=steps[min(step, len(steps) - 1)].classes,
        settings=(*settings, *call.rest),
        **common(call, call.method, used.cfg),
    )
    return Run(dataset, folder(step, dataset), trained, words)


def zero_shot(call: Call) -> Run:
    """The test of zero-shot CLIP, with one of CoOp's YAML files."""
    cfg = recipe(call.method, "few_shot", cfg=call.cfg, backbone=call.backbone).cfg
    dataset, classes = call.values["DATASET"], [word for word in call.rest if word in ("base", "new")]
    folder = call.output.joinpath("ZeroshotCLIP", cfg, dataset, *classes)
    options = ("--eval-only", *extras())
    words = arguments(
        folder=folder, dataset=dataset, options=options, settings=call.rest, **common(call, call.method, cfg)
    )
    return Run(dataset, folder, None, words)


def common(call: Call, method: str, cfg: str) -> dict:
    """The arguments of `protocols.arguments` that all runs of a script share; paths are relative to ROOT."""
    file = config_folder(method).relative_to(ROOT) / f"{cfg}.yaml"
    configs = CONFIGS.relative_to(ROOT)
    return {
        "root": call.data,
        "method": method,
        "config_file": file,
        "configs": configs,
        "backbone": call.backbone,
    }


def extras() -> list[str]:
    """Options of train.py that environment variables give."""
    trackers = os.environ.get("REPORT_TO")
    return [*(["--report-to", trackers] if trackers else []), *(["--quiet"] if os.environ.get("QUIET") else [])]


def reproduce(call: Call) -> list[str]:
    """The call of tools/reproduce.py of a script that tests published prompts."""
    script, values = call.script, call.values
    protocol = values.get("PROTOCOL", script.protocol)
    number = values.get("SHOTS") or values["SEED"]
    shots = protocol == "few_shot"
    chosen = ["--seeds", *map(str, SEEDS), "--shots", number] if shots else ["--seeds", *number.split()]
    cfg = call.cfg or script.cfg
    epoch = script.epoch if not call.cfg and call.backbone != "small" else None
    return [
        *("tools/reproduce.py", call.method, "--checkpoints", values["WEIGHTS"], "--protocol", protocol),
        *("--datasets", values["DATASET"], *chosen, "--root", str(call.data), "--output", str(call.output)),
        *(["--cfg", cfg] if cfg else []),
        *(["--epoch", str(epoch)] if epoch else []),
        *(["--backbone", call.backbone] if call.backbone else []),
        *call.rest,
    ]


def check_runs(call: Call, runs: Sequence[Run]) -> None:
    """Check what the runs need, before the first one.

    Raises:
        UsageError: a YAML file is missing, or a training run is not finished.
    """
    for one in runs:
        check_cfg(call.method, Path(one.arguments[one.arguments.index("--config-file") + 1]).stem)
        unfinished = one.trained and one.trained.is_dir() and not (ROOT / one.trained / results.FILE).is_file()
        if unfinished and "--load-epoch" not in one.arguments and one.trained not in [run.folder for run in runs]:
            remedy = "finish it first, or give EPOCHS, the epoch to test"
            raise UsageError(f"the training run in {one.trained} is not finished", remedy)


def execute(programs: Iterable[Sequence[str]], **variables: str) -> None:
    """Run programs of this project one after another; ends this process with the status of the first that fails.

    A signal to the process group, such as Ctrl-C in a terminal, reaches the program too. SIGTERM to this process alone
    is passed on to it. `variables` are environment variables of the programs.
    """
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: received.append(number))
    for program in programs:
        process = subprocess.Popen([sys.executable, *program], cwd=ROOT, env=os.environ | variables)
        while (status := ended(process)) is None:
            if signal.SIGTERM in received:
                process.terminate()
                received.clear()
        if status:
            sys.exit(status if status > 0 else 128 - status)


def ended(process: subprocess.Popen) -> int | None:
    """The exit status of a process, if it ends within two seconds."""
    try:
        return process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        return None


def report(runs: Sequence[Run]) -> None:
    """Print a line for each result; the test of new classes comes with that of the base classes."""
    os.chdir(ROOT)
    for one in runs:
        pair = [one.folder] if one.trained is None or "new" not in one.arguments else [one.trained, one.folder]
        if os.environ.get("QUIET") and len(pair) == 1:
            continue  # train.py has printed it
        results.main([str(folder) for folder in pair if (folder / results.FILE).is_file()])
