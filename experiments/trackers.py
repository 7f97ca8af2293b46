"""Experiment trackers of `--report-to`: metrics, settings and the learned prompts go to TensorBoard, wandb or MLflow.

Their packages are imported only if they are asked for (requirements-trackers.txt). Each reads its own environment
variables: WANDB_MODE=offline, WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from yacs.config import CfgNode

from common.errors import UsageError, one_line

from .configuration import flatten
from .results import FILE as RESULTS

PROJECT = "modular-prompt-learning"  # of wandb and MLflow, unless their variables name another
FILES = ("config.yaml", RESULTS)  # and the checkpoints
PARAMS = 100  # settings in a request to MLflow


class TensorBoard:
    """As all trackers, it takes numbers by `add_scalar(tag, value, step)`, the name that TensorBoard's writer has.

    `describe(cfg)` comes first. `finish(results, files)` ends it with the run's results (None: it failed) and its files
    {path: folder}, also if `describe` has failed.
    """

    def __init__(self, cfg: CfgNode):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=str(Path(cfg.OUTPUT_DIR, "tensorboard")))
        self.add_scalar = self.writer.add_scalar

    def describe(self, cfg: CfgNode) -> None:
        pass

    def finish(self, results: dict | None, files: dict[Path, str]) -> None:
        self.writer.close()


class Wandb:
    def __init__(self, cfg: CfgNode):
        import wandb

        self.wandb = wandb
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        options = {"name": cfg.OUTPUT_DIR, "dir": cfg.OUTPUT_DIR, "config": flatten(cfg)}
        self.run = wandb.init(project=project, reinit="create_new", **options)  # other seeds may have runs of their own

    def describe(self, cfg: CfgNode) -> None:
        # Losses are by batch, accuracies by epoch, and wandb's own steps never fall.
        self.run.define_metric("train/*", step_metric="batch")
        for split in ("val", "test"):
            self.run.define_metric(f"{split}/*", step_metric="epoch")

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        self.run.log({tag: value, "batch" if tag.startswith("train/") else "epoch": global_step})

    def finish(self, results: dict | None, files: dict[Path, str]) -> None:
        if results is not None:
            self.run.summary.update({f"results/{key}": value for key, value in results.items()})
            artefact = self.wandb.Artifact(f"prompts-{self.run.id}", type="model")
            for file, inside in files.items():
                artefact.add_file(str(file), name=str(Path(inside, file.name)))
            self.run.log_artifact(artefact)
        self.run.finish(exit_code=0 if results is not None else 1)


class MLflow:
    def __init__(self, cfg: CfgNode):
        import mlflow

        self.client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        self.run = self.client.create_run(experiment, run_name=cfg.OUTPUT_DIR).info.run_id

    def describe(self, cfg: CfgNode) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:500]) for key, value in flatten(cfg).items()]
        for start in range(0, len(params), PARAMS):
            self.client.log_batch(self.run, params=params[start : start + PARAMS])

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        self.client.log_metric(self.run, tag, float(value), step=global_step)

    def finish(self, results: dict | None, files: dict[Path, str]) -> None:
        for key, value in (results or {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.client.log_metric(self.run, f"results/{key}", float(value))
        for file, inside in files.items() if results is not None else ():
            self.client.log_artifact(self.run, str(file), inside or None)
        self.client.set_terminated(self.run, "FINISHED" if results is not None else "FAILED")


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


def check_trackers(names: list[str]) -> None:
    """Raise UsageError for a tracker whose package is not installed."""
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # None: a folder of this name, such as wandb's own
            what = f"--report-to {name}: the package {name} is not installed"
            raise UsageError(what, "run `pip install -r requirements-trackers.txt`")


def report_thread(failure: Any) -> None:
    """The hook for errors of threads. TensorBoard raises that of its writer again, in the thread that trains."""
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failure)


@contextmanager
def reporting(names: list[str], cfg: CfgNode, trainer: Any) -> Iterator[None]:
    """Send the scalars of a trainer to trackers and, at the end, what the run has left in its folder.

    Without `names`, keys of TRACKERS, nothing changes: the trainer opens TensorBoard itself. A tracker that fails gets
    nothing more until the end of the run.

    Raises:
        UsageError: a tracker cannot start.
    """
    started: dict[str, Any] = {}
    failed: set[str] = set()

    def attempt(name: str, call: Callable, *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001 - of any kind: no tracker costs a run
            if name not in failed:
                print(f"{name} has failed ({one_line(error)}): the run continues without it", file=sys.stderr)
            failed.add(name)

    def add_scalar(tag: str, value: float, global_step: int) -> None:
        for name in started.keys() - failed:
            attempt(name, started[name].add_scalar, tag, value, global_step)

    folder, results = Path(cfg.OUTPUT_DIR), None
    before, threading.excepthook = threading.excepthook, report_thread
    try:
        for name in names:
            try:
                started[name] = TRACKERS[name](cfg)
                started[name].describe(cfg)
            except Exception as error:
                failed.add(name)  # so that an error of its `finish` is not printed, too
                what = f"--report-to {name}: it cannot start ({one_line(error)})"
                raise UsageError(what, "see its documentation, or leave it out") from error
        if names:  # `init_writer` then opens no other, and closes none before `finish`
            trainer.report_to(SimpleNamespace(add_scalar=add_scalar, close=lambda: None))
        yield
        if names:
            results = json.loads((folder / RESULTS).read_text())
    finally:
        threading.excepthook = before
        files = {folder / name: "" for name in FILES if (folder / name).is_file()}
        for name in trainer.get_model_names():
            files |= {file: name for file in sorted((folder / name).glob("model*")) if file.is_file()}
        for name, tracker in started.items():
            attempt(name, tracker.finish, results, files)
