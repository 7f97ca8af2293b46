"""The output folder of a run: who may write there, which run it holds, and what a start makes."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from dassl.config import flatten
from dassl.utils import setup_logger
from yacs.config import CfgNode

import trainers
from clip import ClipError
from common.errors import UsageError
from common.files import PARTIAL, RESULTS_FILE, RUN_CONFIG_FILE, checksum_once, write_text
from common.lock import ANOTHER, LOCK, locked, not_writable
from common.names import title
from common.removed import had_no_effect
from common.results import CALIBRATION, SEEN, RunResult, read_results
from common.text import read_json, read_text
from configs.files import YAML_BYTES, read_yaml
from measures import predictions
from measures.results import RECORDED
from trainers.base.partial import FOLDER as PARTIAL_TEST

from .arguments import parse_arguments
from .config import (
    PLUGIN,
    RESUMABLE_CHANGES,
    WEIGHTS,
    RunSpec,
    default_settings,
    setup_cfg,
    weights_of,
)


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


OTHER_FOLDER = f"{ANOTHER}, or delete that folder"
# Options in which the runs of a study differ
PER_RUN_OPTIONS = (
    "--output-dir",
    "--model-dir",
    "--seed",
)


def check_finished(
    folder: Path, results: RunResult, argv: Sequence[str], equal: set[tuple]
) -> None:
    """Check that the finished run in a folder is the one that these arguments of train.py ask for.

    Args:
        results: its results.json.
        equal: what the calls before have compared. Most runs of a study differ in the seed and in
            folders alone, so that one of them is compared setting by setting, which takes 10 ms,
            and the others by the text of config.yaml, which takes 0.3 ms.

    Raises UsageError if the run had other settings, other weights or other prompts.
    """
    options = dict(pair for pair in pairwise(argv) if pair[0].startswith("--"))
    seed = options.get("--seed")
    text = text_of_settings(folder, seed)
    recorded = [getattr(results, key) for key in RECORDED if key != "seed"]
    is_of_seed = str(results.seed) == seed
    key = (*shared_arguments(argv), text, repr(recorded), is_of_seed)
    if not text or key not in equal:
        check_same_settings(setup_cfg(parse_arguments(list(argv))), finished=True)
        equal.add(key)
    if "--model-dir" in options:
        epoch = int(options["--load-epoch"]) if "--load-epoch" in options else None
        check_same_prompts(folder, results, options["--model-dir"], epoch)


def shared_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments that the runs of a study share."""
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word in PER_RUN_OPTIONS:
            next(rest, "")
        else:
            words.append(word)
    return words


def text_of_settings(folder: Path, seed: str | None) -> str:
    """config.yaml of a run without its seed and its folder; empty if there is none."""
    file = folder / RUN_CONFIG_FILE
    text = read_text(file, YAML_BYTES, "replace") if file.is_file() else ""
    return re.sub(rf"^(SEED: {seed}|OUTPUT_DIR: .*)\n", "", text, flags=re.MULTILINE)


def check_same_settings(cfg: CfgNode, finished: bool, resumes: str = "") -> None:
    """Check that the run in the output folder, if there is one, was started with these settings.

    A setting that it lacks, as its version did not know it, counts as its default. One that only it
    has is of a newer version, and refused.

    If it is `finished`, its results would count as those of this run: results.json is compared,
    too. The run in `resumes`, if given, is checked instead.
    """
    folder = Path(resumes or cfg.OUTPUT_DIR)
    remedy = "resume it with its own settings" if resumes else OTHER_FOLDER
    before = recorded_settings(folder, cfg, finished)
    if not before:
        return
    now = as_read(flatten(cfg))
    defaults = default_settings(cfg.TRAINER.NAME) if "TRAINER" in cfg else {}
    before = {key: as_read(defaults[key]) for key in now.keys() & defaults.keys()} | before
    try:
        # Earlier versions lack it
        now[WEIGHTS] = weights_of(cfg) if before.get(WEIGHTS) else before.get(WEIGHTS)
    except ClipError:  # the file is not there: a run that is not finished says so later
        before.pop(WEIGHTS)
    changed = [
        key
        for key in sorted(before.keys() & now.keys())
        if before[key] != now[key] and not may_differ(key, cfg, before)
    ]
    if changed:
        refuse(folder, changed, before, now, remedy)
    for key in sorted(before.keys() - now.keys()):
        if not had_no_effect(key, before[key]):
            fault = f"{folder} holds a run with the setting {key}, which this version does not have"
            raise UsageError(fault, f"use the version that made it, or {remedy}", folder)


def may_differ(key: str, cfg: CfgNode, before: dict[str, Any]) -> bool:
    """Whether a setting may change in a run that is resumed."""
    if key == "DATASET.ROOT" and cfg.DATASET.NAME == "ImageFolder":  # it says which images it has
        return os.path.abspath(str(before[key])) == os.path.abspath(cfg.DATASET.ROOT)
    return key in RESUMABLE_CHANGES


def recorded_settings(folder: Path, cfg: CfgNode, finished: bool) -> dict[str, Any]:
    """The settings of the run in a folder, by config.yaml and, if it is `finished`, results.json.

    Empty if no run has begun there. Raises UsageError if a file is damaged, or results have no
    settings.
    """
    file = folder / RUN_CONFIG_FILE
    begun = (f"{PARTIAL_TEST}/*", RESULTS_FILE, "*/model*.pth.tar*")
    if not finished and not any(any(folder.glob(pattern)) for pattern in begun):
        return {}
    if not file.is_file():
        if not finished:
            return {}
        fault = f"{folder} has results and no {RUN_CONFIG_FILE}, which says their settings"
        raise UsageError(fault, OTHER_FOLDER, folder)
    try:
        before = flatten(read_yaml(file))
        if not before:
            raise ValueError("no settings")
        if finished:  # the file may have been copied here from another run
            file = folder / RESULTS_FILE
            recorded = dict(read_json(file).items())
            if recorded.get("dataset") == title(cfg):
                recorded["dataset"] = cfg.DATASET.NAME
            known = RECORDED.keys() & recorded.keys()
            before |= {RECORDED[key]: recorded[key] for key in known}
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{file} is damaged", "restore or delete it", file) from error
    return before


def refuse(folder: Path, changed: list[str], before: dict, now: dict, remedy: str) -> None:
    """Raise UsageError for the settings that have changed."""
    key, *others = changed
    fault = f"{folder} holds a run "
    if changed == [WEIGHTS]:
        name = now["MODEL.BACKBONE.NAME"]
        fault += f"with other weights: {name} had SHA-256 {before[WEIGHTS]!s:.12}..., "
        fault += f"now it has {now[WEIGHTS]!s:.12}..."
        remedy = f"restore {name}, or {remedy}"
    elif changed == [PLUGIN]:
        fault += "of another version of the file of --plugin"
        remedy = f"restore it, or {remedy}"
    else:
        fault += f"with {key} {before[key]}, this one has {now[key]}"
        if others:
            fault += f" ({', '.join(others)} also differ)"
    raise UsageError(fault, remedy, folder)


def check_same_prompts(
    folder: Path, results: RunResult, model_dir: str, load_epoch: int | None
) -> None:
    """Check that a finished evaluation is of the checkpoint that this one names, as far as its
    results say which.
    """
    method = trainers.methods().get(results.trainer)
    path = None
    tested = results.checkpoint_sha256
    epoch = results.tested_epoch
    if tested and method:
        with suppress(UsageError):  # it is gone
            path = method.checkpoint_in(model_dir, load_epoch)
    differs = (
        checksum_once(Path(path)) != tested if path else epoch and load_epoch not in (None, epoch)
    )
    if differs:
        fault = (
            f"{folder} holds a test of another checkpoint, of epoch {epoch}, than "
            f"{path or f'epoch {load_epoch}'}"
        )
        raise UsageError(fault, OTHER_FOLDER)


def as_read(value: Any) -> Any:
    """A setting as YAML gives it back: tuples are lists there."""
    if isinstance(value, dict):
        return {key: as_read(item) for key, item in value.items()}
    return [as_read(item) for item in value] if isinstance(value, list | tuple) else value
