"""The output folder of a run: who may write there, what a start makes, and whether it holds another run."""

import os
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dassl.utils import setup_logger
from yacs.config import CfgNode

import trainers
from clip import ClipError
from common.errors import UsageError
from common.files import PARTIAL, checksum, write_text
from common.results import CONFIG, read_results
from common.text import read_json
from datasets import title
from trainers.base.partial import FOLDER as PARTIAL_TEST

from .configs import read_yaml
from .configuration import WEIGHTS, flatten, weights_of
from .lock import locked, not_writable
from .results import FILE as RESULTS
from .results import RECORDED
from .trackers import TRACKERS

# Settings that may differ when a run is resumed: what it computes stays the same, or as near as another machine allows.
RESUMABLE_CHANGES = {"OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "CACHE", "CACHE_GB", "DATASET.ROOT"}
RESUMABLE_CHANGES |= {f"DATALOADER.{key}" for key in ("NUM_WORKERS", "CACHE", "CACHE_GB", "CACHE_TEST")}
RESUMABLE_CHANGES |= {f"MODEL.{key}" for key in ("COMPILE", "CUDA_GRAPHS")}
RESUMABLE_CHANGES |= {f"MODEL.BACKBONE.{key}" for key in ("TOWERS", "CHECKPOINT_TEXT")}
RESUMABLE_CHANGES |= {"INPUT.MAX_PIXELS", "TRAIN.PRINT_FREQ", "TRAIN.CHECKPOINT_FREQ", "TEST.SELECT_ON_TEST"}
ANOTHER = "choose another --output-dir, or delete that folder"


class OutputFolder:
    """The output folder of a run, locked by this process.

    Nothing in it may be a link, so that the run would write elsewhere, or a pipe, which may never end.
    """

    def __init__(self, path: Path):
        self.path = path
        for entry in path.iterdir():
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                what = f"{entry} is a link or not a regular file"
                raise UsageError(what, "replace it, or choose another --output-dir", entry)
            if re.fullmatch(PARTIAL, entry.name) and entry.is_file():  # of a run that was killed while it wrote
                entry.unlink()

    @contextmanager
    def start(self, cfg: CfgNode, quiet: bool = False) -> Iterator[None]:
        """The start of a run: everything printed goes to log.txt too, and config.yaml is written at its end.

        A start that fails leaves the folder as it was. If `quiet`, everything is printed to log.txt alone.
        """
        if quiet:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - `claimed` restores it
        try:
            setup_logger(str(self.path))
        except OSError as error:
            raise not_writable(self.path, error) from error
        log: Any = sys.stdout
        of_trackers = [path for name in TRACKERS if not (path := self.path / name).exists()]
        try:
            yield
            self.write(CONFIG, cfg.dump())
        except BaseException:
            with suppress(OSError):
                os.unlink(log.file.name)
            for path in of_trackers:
                shutil.rmtree(path, ignore_errors=True)
            raise

    def log(self, text: str) -> None:
        """Write a text to log.txt alone."""
        log: Any = sys.stdout  # Dassl's logger, with the file as an attribute (so it is in the published one)
        log.file.write(text)

    def write(self, name: str, text: str) -> None:
        """Write a file, complete or not at all."""
        write_text(self.path / name, text)

    def remove(self, *names: str) -> None:
        """Delete files, where they exist."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def remove_partial_test(self) -> None:
        """Delete the results that a test has kept in order to resume."""
        shutil.rmtree(self.path / PARTIAL_TEST, ignore_errors=True)


@contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[OutputFolder]:
    """The output folder, which no other run can claim until the end; stdout is then what it was before.

    If `wait`, it waits for a run that is there already.
    """
    stdout = sys.stdout
    with locked(path, wait):
        try:
            yield OutputFolder(path)
        finally:
            log: Any = sys.stdout
            sys.stdout = stdout
            if log is not stdout:
                log.flush()
                log.console = getattr(log, "file", log)  # which the published Dassl's logger closes when it is deleted
                log.console.close()


def check_same_settings(cfg: CfgNode, finished: bool, resumes: str = "") -> None:
    """Check that the run in the output folder, if there is one, was started with these settings.

    If it is `finished`, its results would count as those of this run: results.json is compared, too. The run in
    `resumes`, if given, is checked instead.
    """
    folder, before = Path(resumes or cfg.OUTPUT_DIR), {}
    remedy = "resume it with its own settings" if resumes else ANOTHER
    file = folder / CONFIG
    try:
        begun = any(any(folder.glob(kept)) for kept in ("*/model*.pth.tar*", f"{PARTIAL_TEST}/*.safetensors", RESULTS))
        if file.is_file() and (finished or begun):
            before = flatten(read_yaml(file))
            if not before:
                raise ValueError("no settings")
        if finished:  # the file may have been copied here from another run
            file = folder / RESULTS
            recorded = dict(read_json(file).items())
            if recorded.get("dataset") == title(cfg):
                recorded["dataset"] = cfg.DATASET.NAME
            before |= {setting: recorded[key] for key, setting in RECORDED.items() if key in recorded}
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{file} is damaged", "restore or delete it", file) from error
    now = {key: as_read(value) for key, value in flatten(cfg).items()}
    try:
        now[WEIGHTS] = weights_of(cfg) if before.get(WEIGHTS) else before.get(WEIGHTS)  # earlier versions lack it
    except ClipError:  # the file is not there: a run that is not finished says so later
        before.pop(WEIGHTS)
    may_differ = RESUMABLE_CHANGES
    if cfg.DATASET.NAME == "ImageFolder":  # its root says which images it has
        same = os.path.abspath(str(before.get("DATASET.ROOT"))) == os.path.abspath(cfg.DATASET.ROOT)
        may_differ = RESUMABLE_CHANGES - (set() if same else {"DATASET.ROOT"})
    changed = [key for key in sorted(before.keys() & now.keys()) if before[key] != now[key] and key not in may_differ]
    if changed == [WEIGHTS]:
        name, hashes = cfg.MODEL.BACKBONE.NAME, [f"{values[WEIGHTS]!s:.12}..." for values in (before, now)]
        what = f"{folder} holds a run with other weights: {name} had SHA-256 {hashes[0]}, now it has {hashes[1]}"
        raise UsageError(what, f"restore {name}, or {remedy}", folder)
    if changed:
        others = f" ({', '.join(changed[1:])} also differ)" if changed[1:] else ""
        raise UsageError(
            f"{folder} holds a run with {changed[0]} {before[changed[0]]}, this one has {now[changed[0]]}{others}",
            remedy,
            folder,
        )


def check_same_prompts(args: Namespace, cfg: CfgNode) -> None:
    """Check that a finished evaluation is of the checkpoint that this one names, as far as its results say which."""
    folder, method, path = Path(cfg.OUTPUT_DIR), trainers.methods().get(cfg.TRAINER.NAME), None
    found = (args.model_dir and read_results(folder)) or {}
    tested, epoch = found.get("checkpoint_sha256"), found.get("tested_epoch")
    if tested and method:
        with suppress(UsageError):  # it is gone
            path = method.checkpoint_in(args.model_dir, args.load_epoch)
    differs = checksum(Path(path)) != tested if path else epoch and args.load_epoch not in (None, epoch)
    if differs:
        asked = path or f"epoch {args.load_epoch}"
        raise UsageError(f"{folder} holds a test of another checkpoint, of epoch {epoch}, than {asked}", ANOTHER)


def as_read(value: Any) -> Any:
    """A setting as YAML gives it back: tuples are lists there."""
    if isinstance(value, dict):
        return {key: as_read(item) for key, item in value.items()}
    return [as_read(item) for item in value] if isinstance(value, list | tuple) else value
