"""The output folder of a run: what its start puts there, which is deleted again if the start fails."""

import re
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
from common.text import read_json
from datasets import title

from .configs import read_yaml
from .configuration import flatten
from .results import FILE as RESULTS
from .results import RECORDED

# Settings that may differ when a run is resumed: what it computes stays the same, or as near as another machine allows.
RESUMABLE_CHANGES = {
    "DATASET.ROOT",
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "USE_CUDA",
    "INPUT.MAX_PIXELS",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE",
    "DATALOADER.CACHE_GB",
    "DATALOADER.CACHE_TEST",
    "CACHE",
    "CACHE_GB",
    "MODEL.COMPILE",
    "MODEL.BACKBONE.TOWERS",
    "MODEL.BACKBONE.CHECKPOINT_TEXT",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TEST.SELECT_ON_TEST",
}


class OutputFolder:
    """The files that a run has made in its folder so far.

    Args:
        path: the folder, locked by this process.

    Raises:
        UsageError: a folder in it is a link, so that the run would write elsewhere.
    """

    def __init__(self, path: Path):
        self.path = path
        self.new_files: list[Path] = []
        for link in (entry for entry in path.iterdir() if entry.is_symlink() and entry.is_dir()):
            raise UsageError(
                f"{link} is a link to a folder elsewhere", "replace it, or choose another --output-dir", link
            )
        for file in path.glob(".*.partial"):
            if re.fullmatch(PARTIAL, file.name) and file.is_file():  # of a run that was killed while it wrote
                file.unlink()

    def start_log(self) -> None:
        """Send everything printed to log.txt as well; an earlier log is kept.

        Raises:
            UsageError: the folder is not writable.
        """
        try:
            setup_logger(str(self.path))
        except OSError as error:
            raise UsageError(
                f"cannot write to the output folder {self.path} ({error.strerror})", "choose another --output-dir"
            ) from error
        log: Any = sys.stdout  # Dassl's logger, with the file as an attribute (so it is in the published one)
        self.new_files.append(Path(log.file.name))

    def log(self, *lines: str) -> None:
        """Write lines to log.txt only."""
        log: Any = sys.stdout
        log.file.write("".join(f"{line}\n" for line in lines))

    def write_config(self, cfg: CfgNode) -> None:
        file = self.path / CONFIG
        if not file.exists():
            self.new_files.append(file)
        write_text(file, cfg.dump())

    def discard(self) -> None:
        """Delete the files that this run has made."""
        for file in self.new_files:
            with suppress(OSError):
                file.unlink()


@contextmanager
def restored_stdout() -> Iterator[None]:
    """Take the log that `setup_logger` puts in place of stdout away again at the end."""
    before = sys.stdout
    try:
        yield
    finally:
        log: Any = sys.stdout
        sys.stdout = before
        if log is not before:
            log.flush()
            log.console = getattr(log, "file", log)  # which the published Dassl's logger closes when it is deleted
            log.console.close()


@contextmanager
def output_folder(path: Path) -> Iterator[OutputFolder]:
    """The folder while a run starts; an error or an interrupt meanwhile leaves things as they were."""
    folder = OutputFolder(path)
    try:
        yield folder
    except BaseException:
        folder.discard()
        raise


def check_same_settings(cfg: CfgNode, finished: bool) -> None:
    """Check that the run in the output folder, if there is one, was started with these settings.

    Args:
        finished: whether its results would count as those of this run; results.json is compared too then.

    Raises:
        UsageError: some settings differ, or a file is damaged.
    """
    folder, before = Path(cfg.OUTPUT_DIR), {}
    file = folder / CONFIG
    try:
        if file.is_file() and (finished or any(folder.glob("*/model*.pth.tar*"))):
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
        raise UsageError(f"{file} is damaged", "restore or delete it, or choose another --output-dir", file) from error
    now = {key: as_read(value) for key, value in flatten(cfg).items()}
    may_differ = RESUMABLE_CHANGES
    if cfg.DATASET.NAME == "ImageFolder":
        may_differ = may_differ - {"DATASET.ROOT"}  # which says which images these are
    changed = [key for key in sorted(before.keys() & now.keys()) if before[key] != now[key] and key not in may_differ]
    if changed:
        others = f" ({', '.join(changed[1:])} also differ)" if changed[1:] else ""
        raise UsageError(
            f"{folder} holds a run with {changed[0]} {before[changed[0]]}, this one has {now[changed[0]]}{others}",
            "choose another --output-dir, or delete that folder",
            folder,
        )


def as_read(value: Any) -> Any:
    """A setting as YAML gives it back: tuples are lists there."""
    if isinstance(value, dict):
        return {key: as_read(item) for key, item in value.items()}
    return [as_read(item) for item in value] if isinstance(value, list | tuple) else value
