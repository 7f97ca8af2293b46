"""Files that are written completely or not at all, and their checksums."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError

BLOCK = 1 << 20
PARTIAL = r"\..+\.\d+\.partial"  # name of an unfinished file; the number is that of the process that writes it


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. It replaces `path` in one step at the end; after an error it is deleted.

    Raises:
        OSError: the disk is full or the folder is not writable; its text says so and names `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a killed process, or a link that somebody has put there
        yield partial
        os.replace(partial, path)
    except OSError as error:
        reason = f"cannot write: {error.strerror or error}; free some space or change the permissions"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all (UTF-8)."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to. At the end its files are in `folder`; after an error it is deleted.

    Raises:
        UsageError: `folder` exists already, and is not an empty folder; or nothing can be written there.
    """
    there = folder.is_dir()  # it may be the current folder or a mount, which cannot be replaced
    parent = folder if there else next(parent for parent in folder.absolute().parents if parent.exists())
    stage = parent / f".{folder.absolute().name}.partial"
    if there and any(entry != stage for entry in folder.iterdir()):
        raise UsageError(f"{folder} is not empty", "choose another folder, or delete it", folder)
    if not there and os.path.lexists(folder):
        raise UsageError(f"{folder} is not a folder", "choose another name, or delete it", folder)
    try:
        shutil.rmtree(stage, ignore_errors=True)  # of an export that was killed
        try:
            stage.mkdir()
        except OSError as error:
            raise UsageError(f"cannot write to {folder} ({error.strerror})", "choose another folder", folder) from error
        yield stage
        if there:
            for file in stage.iterdir():
                os.replace(file, folder / file.name)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def checksum(path: Path, kind: str = "sha256", progress: Callable[[int], object] | None = None) -> str:
    """The checksum of a file in hexadecimal.

    Args:
        path: the file.
        kind: a name that hashlib knows, such as sha256 or md5.
        progress: called with the number of bytes of each block read.
    """
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def identity(path: Path) -> tuple:
    """Its real path and facts that change as soon as anybody replaces the file or writes to it."""
    status = os.stat(path)
    return os.path.realpath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
