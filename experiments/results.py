"""results.json: what a finished run has measured."""

import argparse
import json
import platform
from contextlib import redirect_stdout
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path

from common.errors import UsageError
from common.files import write_text
from common.results import FILE, read_results, selected_on_test
from common.start import add_common_options
from common.version import source

ERROR = "error.txt"  # next to results.json: the error of a run of a study
SELECTED = "Selected on test images"  # starts the line of a log that says so
# The settings that results.json holds, under names of its own.
RECORDED = {
    "trainer": "TRAINER.NAME",
    "dataset": "DATASET.NAME",
    "seed": "SEED",
    "shots": "DATASET.NUM_SHOTS",
    "classes": "DATASET.SUBSAMPLE_CLASSES",
    "backbone": "MODEL.BACKBONE.NAME",
}


def write_results(cfg, trainer, epochs: int | None, tested_epoch: int | None, choices: list[dict] | None) -> None:
    """Write results.json of a run that has ended; figures that were not measured are null.

    Args:
        cfg: the run's configuration.
        trainer: after its test.
        epochs, tested_epoch: as `run.run` returns them.
        choices: the records (trainers/base/data_use.py) of what was chosen on images; None if that is not known.
    """
    import torch  # here, as readers of results do without it

    from clip import current_ranks
    from datasets import title

    from .configuration import flatten
    from .environment import versions

    measured = results_of(cfg, trainer)
    device, settings, ranks = trainer.device, flatten(cfg), current_ranks().count
    content = {
        **{key: settings[setting] for key, setting in RECORDED.items()},
        "dataset": title(cfg),
        "split": getattr(trainer, "test_split", cfg.TEST.SPLIT),
        "accuracy": measured.get("accuracy"),
        "error_rate": measured.get("error_rate"),
        "macro_f1": measured.get("macro_f1"),
        "n_test": measured.get("n_test"),
        "epochs": epochs,
        "tested_epoch": tested_epoch,
        "data_use": {"choose": choices},
        "train_seconds": getattr(trainer, "train_seconds", None) or None,  # 0: nothing was trained
        "test_seconds": getattr(trainer, "test_seconds", None),
        **({"ranks": ranks} if ranks > 1 else {}),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **source(),
        "versions": versions(),
    }
    write_text(Path(cfg.OUTPUT_DIR, FILE), json.dumps(content, indent=1) + "\n")


def results_of(cfg, trainer) -> dict:
    """What the trainer's last test measured; {} if there was none."""
    if hasattr(trainer, "test_results"):
        return (trainer.test_results or {}) | {"n_test": trainer.n_test}
    if cfg.TEST.NO_TEST:
        return {}
    with redirect_stdout(StringIO()):  # a trainer of the published Dassl keeps the results in its evaluator alone
        measured = trainer.evaluator.evaluate()
    validates = cfg.TEST.SPLIT == "val" and trainer.val_loader is not None
    return measured | {"n_test": len((trainer.val_loader if validates else trainer.test_loader).dataset)}


def mark_of(run: dict) -> str:
    """The words behind the accuracy of a run that was selected on test images; else empty."""
    return f" ({SELECTED.lower()})" if selected_on_test(run) else ""


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 base new / (base + new), in the unit of its arguments; 0 where both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


def describe(run: dict) -> str:
    """The result of a run in one line."""
    shots = f" {run['shots']} shots" if run["shots"] > 0 else ""
    seed = f" seed {run['seed']}" if run["seed"] >= 0 else ""
    return (
        f"{run['trainer']} on {run['dataset']}{shots}{seed}: {run['accuracy']:.2f}% "
        f"on {run['n_test']:,} test images of {run['classes']} classes{mark_of(run)}"
    )


def main(argv: list[str] | None = None) -> None:
    """The command `python tools/base2new.py RUN ...`."""
    parser = argparse.ArgumentParser(
        description="Print one line of results for each run, and the harmonic mean after a base and a new one."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="output folder of train.py")
    add_common_options(parser)
    args = parser.parse_args(argv)
    for folder in args.runs:
        if not (folder / FILE).is_file():
            raise UsageError(f"there is no {folder / FILE}", "give the output folder of a finished run", folder)
    found = {folder: run for folder in args.runs if (run := read_results(folder))}
    for folder, run in found.items():
        try:
            print(describe(run))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{folder / FILE} is damaged", "delete it and start its run again", folder) from error
    runs = list(found.values())
    if [run["classes"] for run in runs] == ["base", "new"]:
        mark = max(map(mark_of, runs))  # one of them is enough
        print(f"Harmonic mean: {harmonic_mean(*(run['accuracy'] for run in runs)):.2f}%{mark}")
