"""Experiment trackers of `--report-to`. Every training run writes TensorBoard's files.

wandb and MLflow take the numbers from its writer, and get the settings, the results and the learned
prompts too. Their packages are imported only if they are asked for (requirements-trackers.txt).
Each reads its own environment variables: WANDB_MODE=offline, WANDB_PROJECT, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME, ...
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
from common.run_files import RESULTS_FILE, RUN_CONFIG_FILE

PROJECT = "modular-prompt-learning"  # of wandb and MLflow, unless their variables name another
PARAMS = 100  # settings in a request to MLflow


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


class MLflow:
    def start(self, cfg: CfgNode) -> None:
        import mlflow

        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        mlflow.pytorch.autolog(log_every_n_step=1, log_models=False, silent=True)
        mlflow.start_run(run_name=cfg.OUTPUT_DIR)
        params = [(key, str(value)[:500]) for key, value in flatten(cfg).items()]
        for first in range(0, len(params), PARAMS):
            mlflow.log_params(dict(params[first : first + PARAMS]))

    def finish(self, results: dict | None, files: dict[Path, str]) -> None:
        import mlflow
        from mlflow.utils.autologging_utils.metrics_queue import flush_metrics_queue

        flush_metrics_queue()
        if results is not None:
            numbers = {
                key: value for key, value in results.items() if isinstance(value, int | float)
            }
            mlflow.log_metrics({f"results/{key}": float(value) for key, value in numbers.items()})
            for file, inside in files.items():
                mlflow.log_artifact(str(file), inside or None)
        mlflow.end_run("FINISHED" if results is not None else "FAILED")
        # It would start a run of its own for the next seed
        mlflow.pytorch.autolog(disable=True, silent=True)


TRACKERS: dict[str, Any] = {"wandb": Wandb, "mlflow": MLflow}


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
