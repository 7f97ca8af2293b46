"""The output folder of a run: who may write there, what it holds already, and what a start
makes.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dassl.utils import setup_logger

from common.files import PARTIAL, RESULTS_FILE, RUN_CONFIG_FILE, write_text
from common.lock import LOCK, locked, not_writable
from common.results import CALIBRATION, SEEN, RunResult, read_results
from measures import predictions
from trainers.base.partial import FOLDER as PARTIAL_TEST

from .run_spec import RunSpec
from .same_run import check_same_prompts, check_same_settings


class OutputFolder:
    """The output folder of a run, locked by this process unless the run is finished."""

    def __init__(self, spec: RunSpec):
        self.spec = spec
        self.path = Path(spec.cfg.OUTPUT_DIR)
        # Whether it has results that --skip-finished accepts; else the run starts or resumes
        self.is_finished = False
        self.results: RunResult | None = None  # of a finished run, or of the run that `finish` ends

    @classmethod
    @contextmanager
    def claim(cls, spec: RunSpec, wait: bool = False) -> Iterator["OutputFolder"]:
        """The output folder of a run, which no other run can claim until the end; stdout is then
        what it was before.

        If `wait`, it waits for a run that is there already, instead of raising UsageError. Raises
        UsageError if it holds another run, or is not writable.
        """
        folder = cls(spec)
        stdout = sys.stdout
        if spec.is_finished:  # it may be read-only, and needs no lock
            folder.look()
            yield folder
            return
        is_new = not folder.path.exists()
        with locked(folder.path, wait):
            try:
                folder.look()
                if not folder.is_finished:
                    folder.clean()
                yield folder
            except BaseException:
                if is_new:
                    folder.remove_empty()
                raise
            finally:
                log: Any = sys.stdout
                sys.stdout = stdout
                if log is not stdout:
                    log.flush()
                    # The published Dassl's logger closes `console` when it is deleted: here, that
                    # must not be stdout.
                    log.console = getattr(log, "file", log)
                    log.console.close()

    def remove_empty(self) -> None:
        """Delete the folder, unless it has more than its lock, which a run that waits makes
        again.
        """
        if [entry.name for entry in self.path.iterdir()] == [LOCK]:
            (self.path / LOCK).unlink()
            with suppress(OSError):
                self.path.rmdir()

    def look(self) -> None:
        """Find out what it holds; raises UsageError if the folder, or that of --resume, holds
        another run.
        """
        cfg = self.spec.cfg
        self.is_finished = self.spec.is_finished
        if self.is_finished or (self.path / RUN_CONFIG_FILE).is_file():
            check_same_settings(cfg, self.is_finished)
        if self.is_finished:
            self.results = read_results(self.path)
            if self.results and self.spec.args.model_dir:
                check_same_prompts(
                    self.path, self.results, self.spec.args.model_dir, self.spec.args.load_epoch
                )
        elif cfg.RESUME:
            check_same_settings(cfg, False, cfg.RESUME)

    def clean(self) -> None:
        """Delete what a killed process has left half-written."""
        for entry in self.path.iterdir():
            if re.fullmatch(PARTIAL, entry.name) and entry.is_file():
                entry.unlink()

    @contextmanager
    def start(self) -> Iterator[None]:
        """The start of a run: everything printed goes to log.txt too, and config.yaml is written at
        its end.

        A start that fails leaves no log. With --quiet, everything is printed to log.txt alone.
        """
        if self.spec.args.quiet:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - `claim` restores it
        try:
            setup_logger(str(self.path))
        except OSError as error:
            raise not_writable(self.path, error) from error
        log: Any = sys.stdout
        of_wandb = self.path / "wandb"
        had_wandb = of_wandb.exists()
        try:
            yield
            write_text(self.path / RUN_CONFIG_FILE, self.spec.cfg.dump())
        except BaseException:
            with suppress(OSError):
                os.unlink(log.file.name)
            if not had_wandb:
                shutil.rmtree(of_wandb, ignore_errors=True)
            raise

    def remove_results(self) -> None:
        """Delete the results of an earlier start, which this one replaces."""
        for name in (RESULTS_FILE, CALIBRATION, SEEN, predictions.PREDICTIONS_FILE):
            (self.path / name).unlink(missing_ok=True)

    def finish(self, results: str) -> None:
        """Write results.json, the last file of a run, and delete the results that its test has kept
        to resume.
        """
        write_text(self.path / RESULTS_FILE, results)
        self.results = read_results(self.path)
        shutil.rmtree(self.path / PARTIAL_TEST, ignore_errors=True)
