"""Start a script of scripts/: calls of train.py, one after another, and a line for each result."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from common.errors import UsageError
from common.start import ROOT
from configs.files import CONFIGS, config_folder
from configs.recipes import recipe
from measures import results

from ..protocols import PROTOCOLS, SEEDS, train_argv
from .arguments import Call, find, help_text, is_set, parse
from .table import SCRIPTS, Script


@dataclass(frozen=True)
class Run:
    """A call of train.py."""

    dataset: str
    folder: Path
    trained: Path | None  # folder of the training run whose prompts it tests; None: it trains
    arguments: list[str]


def main(argv: list[str] | None = None) -> None:
    """Run a script: its path, and its arguments."""
    path, *words = (sys.argv[1:] if argv is None else argv) or [""]
    name = find(path)
    if "--help" in words or "-h" in words:
        print(help_text(name, SCRIPTS[name]))
        return
    dry = "--dry-run" in words or is_set("DRY_RUN")
    call = parse(name, [word for word in words if word != "--dry-run"], os.environ)
    if call.script.note:
        print(f"note: {call.script.note}", file=sys.stderr)
    reproduces = call.script.steps == "reproduce"
    runs = [] if reproduces else list(runs_of(call))
    programs = [reproduce(call)] if reproduces else [["train.py", *run.arguments] for run in runs]
    if dry:
        if Path.cwd() != ROOT:
            print(shlex.join(["cd", str(ROOT)]))
        print("\n".join(shlex.join(["python", *program]) for program in programs))
        return
    check_trained(runs, call.script)
    if is_set("PREPARE"):
        datasets = dict.fromkeys(run.dataset for run in runs) or [call.values["DATASET"]]
        execute(["tools/prepare.py", dataset, "--root", str(call.data)] for dataset in datasets)
    execute(programs)
    report(runs)


def runs_of(call: Call) -> Iterator[Run]:
    """The calls of train.py of a script, in order."""
    script = call.script
    values = call.values
    if script.protocol not in PROTOCOLS:
        yield test_alone(call)
        return
    datasets = script.datasets or (values.get("DATASET") or values["SOURCE"],)
    seeds = list(map(int, values["SEED"].split())) if "SEED" in values else SEEDS
    shots = (
        list(map(int, values.get("SHOTS", "").split()))
        or script.shots
        or PROTOCOLS[script.protocol].shots
    )
    for dataset, seed, number in product(datasets, seeds, shots):
        for step in script.steps:
            assert isinstance(step, int)
            yield run(call, step, dataset, seed, number)


def run(call: Call, step: int, dataset: str, seed: int, shots: int) -> Run:
    """One run: a step of the script's protocol."""
    script = call.script
    steps = PROTOCOLS[call.script.protocol].steps
    source = call.values.get("SOURCE", dataset) if step else dataset
    default = script.cfg or recipe(call.method, script.protocol, source, shots).cfg
    cfg = call.cfg or ("" if call.backbone == "small" else script.cfg)
    used = recipe(call.method, script.protocol, source, shots, cfg, call.backbone)
    templates = script.folders or [planned.folder for planned in steps]

    def folder(step: int, dataset: str) -> Path:
        words = {
            **call.values,
            "dataset": dataset,
            "name": f"{call.method}/{used.cfg}",
            "seed": seed,
        }
        return call.output / templates[step].format(**words, shots=shots)

    trained = folder(0, source) if step else None
    options: list = []
    settings = [*used.settings, *script.settings.format(**call.values).split()]
    if trained:
        published = used.cfg == default or ("CFG" in script.form.split() and is_published(used.cfg))
        epoch = call.values.get("EPOCHS") or (
            script.epochs.get(dataset, script.epoch) if published else None
        )
        options = [
            "--eval-only",
            "--model-dir",
            trained,
            *(("--load-epoch", epoch) if epoch else ()),
        ]
    else:
        settings += script.train_settings.split()
        settings += ["OPTIM.MAX_EPOCH", call.values["EPOCHS"]] if "EPOCHS" in call.values else []
    own = {"folder": folder(step, dataset), "classes": steps[min(step, len(steps) - 1)].classes}
    words = train_arguments(
        call, used.cfg, options, settings, dataset=dataset, seed=seed, shots=shots, **own
    )
    return Run(dataset, folder(step, dataset), trained, words)


def is_published(cfg: str) -> bool:
    """Whether it may name a published YAML file: those of the small CLIP train for other numbers of
    epochs.
    """
    return not cfg.startswith("small")


def test_alone(call: Call) -> Run:
    """The test of zero-shot CLIP; or of the prompts in MODEL_DIR, which also detects images of the
    datasets OOD.
    """
    cfg = recipe(call.method, "few_shot", cfg=call.cfg, backbone=call.backbone).cfg
    dataset = call.values["DATASET"]
    trained = None
    options: list = ["--eval-only"]
    if call.script.protocol == "ood":
        trained = Path(call.values["MODEL_DIR"])
        folder = trained / "ood" / "{OOD}_T{T}".format(**call.values)
        epoch = ("--load-epoch", call.script.epoch) if is_published(cfg) else ()
        options += ["--model-dir", trained, *epoch, "--ood", call.values["OOD"]]
    else:
        classes = [word for word in call.rest if word in ("base", "new")]
        folder = call.output.joinpath("ZeroshotCLIP", cfg, dataset, *classes)
    settings = call.script.settings.format(**call.values).split()
    return Run(
        dataset,
        folder,
        trained,
        train_arguments(call, cfg, options, settings, folder=folder, dataset=dataset),
    )


def train_arguments(
    call: Call, cfg: str, options: Sequence, settings: Sequence, **run
) -> list[str]:
    """The arguments of train.py for one run of a script: see `protocols.train_argv`. Paths are
    relative to ROOT.
    """
    trackers = os.environ.get("REPORT_TO")
    everywhere = [
        *(["--report-to", trackers] if trackers else []),
        *(["--quiet"] if is_set("QUIET") else []),
    ]
    return train_argv(
        root=call.data,
        method=call.method,
        config_file=Path(os.path.relpath(config_folder(call.method), ROOT), f"{cfg}.yaml"),
        configs=CONFIGS.relative_to(ROOT),
        backbone=call.backbone,
        options=(*options, *everywhere),
        settings=(*settings, *call.rest),
        **run,
    )


def reproduce(call: Call) -> list[str]:
    """The call of tools/reproduce.py of a script that tests published prompts."""
    script = call.script
    values = call.values
    protocol = values.get("PROTOCOL", script.protocol)
    number = values["SHOTS" if "SHOTS" in script.form else "SEED"]
    few_shot = protocol == "few_shot"
    if few_shot and " " in number:
        raise UsageError(f"SHOTS is {number!r}", "start the script once for each number of images")
    chosen = (
        ["--seeds", *map(str, SEEDS), "--shots", number]
        if few_shot
        else ["--seeds", *number.split()]
    )
    cfg = call.cfg or script.cfg
    epoch = script.epoch if not call.cfg and call.backbone != "small" else None
    return [
        *(
            "tools/reproduce.py",
            call.method,
            "--checkpoints",
            values["WEIGHTS"],
            "--protocol",
            protocol,
        ),
        *(
            "--datasets",
            values["DATASET"],
            *chosen,
            "--root",
            str(call.data),
            "--output",
            str(call.output),
        ),
        *(["--cfg", cfg] if cfg else []),
        *(["--epoch", str(epoch)] if epoch else []),
        *(["--backbone", call.backbone] if call.backbone else []),
        *call.rest,
    ]


def check_trained(runs: Sequence[Run], script: Script) -> None:
    """Raise UsageError if a training run whose prompts will be tested is not finished, unless its
    epoch is given.
    """
    trained = {run.folder for run in runs if not run.trained}
    for folder in {
        run.trained for run in runs if run.trained and "--load-epoch" not in run.arguments
    } - trained:
        if (ROOT / folder).is_dir() and not (ROOT / folder / results.RESULTS_FILE).is_file():
            remedy = "finish it first" + ", or give EPOCHS, the epoch to test" * (
                "EPOCHS" in script.usage
            )
            raise UsageError(f"the training run in {folder} is not finished", remedy)


def execute(programs: Iterable[Sequence[str]]) -> None:
    """Run programs of this project one after another; ends this process with the status of the
    first that fails.

    A signal to the process group, such as Ctrl-C in a terminal, reaches the program too. SIGTERM to
    this process alone is passed on to it.
    """
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: received.append(number))
    for program in programs:
        process = subprocess.Popen([sys.executable, *program], cwd=ROOT)
        while process.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            if process.returncode is None and signal.SIGTERM in received:
                process.terminate()
                received.clear()
        if status := process.returncode:
            sys.exit(status if status > 0 else 128 - status)


def report(runs: Sequence[Run]) -> None:
    """Print a line for each result; the test of new classes comes with that of the base classes."""
    os.chdir(ROOT)
    for one in runs:
        pair = (
            [one.folder]
            if one.trained is None or "new" not in one.arguments
            else [one.trained, one.folder]
        )
        if is_set("QUIET") and len(pair) == 1:
            continue  # train.py has printed it
        results.main([str(folder) for folder in pair if (folder / results.RESULTS_FILE).is_file()])
