"""Experiment trackers of `--report-to`. Every training run writes TensorBoard's files.

wandb takes the numbers from its writer, and gets the settings, the results and the learned prompts
too. Its package is imported only if it is asked for (requirements-trackers.txt). It reads its own
environment variables: WANDB_MODE=offline, WANDB_PROJECT, ...
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dassl.config import flatten
from yacs.config import CfgNode

from common.errors import UsageError, one_line
from common.files import RESULTS_FILE, RUN_CONFIG_FILE

PROJECT = "modular-prompt-learning"  # of wandb, unless its variable names another


class Wandb:
    """As all trackers, `start` begins its run, and `finish` ends it: with the results (None: the
    run failed) and the files {path: folder}, also if `start` has failed."""

    def start(self, cfg: CfgNode) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        options = {"name": cfg.OUTPUT_DIR, "dir": cfg.OUTPUT_DIR, "config": flatten(cfg)}
        wandb.init(project=project, reinit="finish_previous", sync_tensorboard=True, **options)

    def finish(self, results: dict | None, files: dict[Path, str]) -> None:
        import wandb

        if wandb.run and results is not None:
            wandb.run.summary.update({f"results/{key}": value for key, value in results.items()})
            artefact = wandb.Artifact(f"prompts-{wandb.run.id}", type="model")
            for file, inside in files.items():
                artefact.add_file(str(file), name=str(Path(inside, file.name)))
            wandb.run.log_artifact(artefact)
        wandb.finish(exit_code=0 if results is not None else 1)


TRACKERS: dict[str, Any] = {"wandb": Wandb}


def check_trackers(names: list[str]) -> None:
    """Raise UsageError for a tracker whose package is not installed."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # None: a folder of this name, such as wandb's own
            fault = f"--report-to {name}: the package {name} is not installed"
            raise UsageError(fault, "run `pip install -r requirements-trackers.txt`")


@contextmanager
def reporting(names: list[str], cfg: CfgNode, trainer: Any) -> Iterator[None]:
    """Report a run to trackers, keys of TRACKERS or `tensorboard`. At the end they get what it has
    left in its folder. Raises UsageError if a tracker cannot start."""
    started: dict[str, Any] = {}
    failed = ""
    results = None
    folder = Path(cfg.OUTPUT_DIR)
    try:
        for name in filter(TRACKERS.get, names):
            started[name] = TRACKERS[name]()
            try:
                started[name].start(cfg)
            except Exception as error:
                failed = name
                fault = f"--report-to {name}: it cannot start ({one_line(error)})"
                raise UsageError(fault, "see its documentation, or leave it out") from error
        yield
        results = json.loads((folder / RESULTS_FILE).read_text())
    finally:
        files = left_files(folder, trainer.get_model_names())
        for name, tracker in started.items():
            try:
                tracker.finish(results, files)
            except Exception as error:
                if name != failed:
                    fault = f"{name} has failed ({one_line(error)})"
                    print(f"{fault}: the run continues without it", file=sys.stderr)


def left_files(folder: Path, models: Iterable[str]) -> dict[Path, str]:
    """The files of a run, by the folder in which a tracker has them."""
    files = {folder / name: "" for name in (RUN_CONFIG_FILE, RESULTS_FILE)}
    for name in models:
        files |= dict.fromkeys(sorted((folder / name).glob("model*")), name)
    return {file: inside for file, inside in files.items() if file.is_file()}
