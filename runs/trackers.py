"""Weights & Biases as the tracker of `--report-to wandb`. Every training run writes TensorBoard's
files.

wandb takes the numbers from TensorBoard's writer, and gets the settings, the results and the
learned prompts too. Its package is imported only if it is asked for (requirements-trackers.txt). It
reads its own environment variables: WANDB_MODE=offline, WANDB_PROJECT, ...
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dassl.config import flatten
from yacs.config import CfgNode

from common.errors import UsageError, one_line
from common.files import RESULTS_FILE, RUN_CONFIG_FILE

PROJECT = "modular-prompt-learning"  # of wandb, unless its variable names another


def check_wandb() -> None:
    """Raise UsageError if wandb is not installed."""
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # None: a folder of this name, such as wandb's own
        fault = "--report-to wandb: the package wandb is not installed"
        raise UsageError(fault, "run `pip install -r requirements-trackers.txt`")


@contextmanager
def reporting(cfg: CfgNode, trainer: Any) -> Iterator[None]:
    """Report a run to wandb. At the end it gets what the run has left in its folder. Raises
    UsageError if wandb cannot start; if it fails later, the run continues."""
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    options = {"name": cfg.OUTPUT_DIR, "dir": cfg.OUTPUT_DIR, "config": flatten(cfg)}
    try:
        wandb.init(project=project, reinit="finish_previous", sync_tensorboard=True, **options)
    except Exception as error:
        with suppress(Exception):
            wandb.finish(exit_code=1)
        fault = f"--report-to wandb: it cannot start ({one_line(error)})"
        raise UsageError(fault, "see its documentation, or leave it out") from error
    folder = Path(cfg.OUTPUT_DIR)
    exit_code = 1
    try:
        yield
        report_results(folder, trainer.get_model_names())
        exit_code = 0
    finally:
        with survived():
            wandb.finish(exit_code=exit_code)


@contextmanager
def survived() -> Iterator[None]:
    """Within it, an error of wandb is printed, and costs nothing."""
    try:
        yield
    except Exception as error:
        fault = f"wandb has failed ({one_line(error)})"
        print(f"{fault}: the run continues without it", file=sys.stderr)


def report_results(folder: Path, models: Iterable[str]) -> None:
    """Give wandb the results and the files of a run."""
    import wandb

    run: Any = wandb.run
    results = json.loads((folder / RESULTS_FILE).read_text())
    with survived():
        run.summary.update({f"results/{key}": value for key, value in results.items()})
        artefact = wandb.Artifact(f"prompts-{run.id}", type="model")
        for file, inside in left_files(folder, models).items():
            artefact.add_file(str(file), name=str(Path(inside, file.name)))
        run.log_artifact(artefact)


def left_files(folder: Path, models: Iterable[str]) -> dict[Path, str]:
    """The files of a run, by the folder in which wandb has them."""
    files = {folder / name: "" for name in (RUN_CONFIG_FILE, RESULTS_FILE)}
    for name in models:
        files |= dict.fromkeys(sorted((folder / name).glob("model*")), name)
    return {file: inside for file, inside in files.items() if file.is_file()}
