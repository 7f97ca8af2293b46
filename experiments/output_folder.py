"""The output folder of a run: who may write there, what a start makes, and whether it holds another run."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dassl.utils import setup_logger
from yacs.config import CfgNode

from common.errors import UsageError
from common.files import PARTIAL, write_text
from common.results import CONFIG
from trainers.base.partial import FOLDER as PARTIAL_TEST

from .lock import ANOTHER, locked, not_writable
from .trackers import TRACKERS


class OutputFolder:
    """The output folder of a run, locked by this process.

    Nothing in it may be a link, so that the run would write elsewhere, or a pipe, which may never end.
    """

    def __init__(self, path: Path):
        self.path = path
        for entry in path.iterdir():
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                what = f"{entry} is a link or not a regular file"
                raise UsageError(what, f"replace it, or {ANOTHER}", entry)
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
