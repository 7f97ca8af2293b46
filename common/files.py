"""Files that are written completely or not at all, and their checksums."""

import fcntl
import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

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


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A new private folder `parent/prefix...`, deleted at the end; so are those that killed processes have left.

    A lock of the kernel (flock) on the folder ends with its process, and so tells others whether it is in use.

    Raises:
        OSError: `parent` is missing, full or not writable.
    """
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError), locked_folder(left):  # it is in use, or not a folder of this user
            shutil.rmtree(left)
    folder = Path(mkdtemp(prefix=prefix, dir=parent))
    with locked_folder(folder, required=False):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked_folder(folder: Path, required: bool = True) -> Iterator[None]:
    """Hold the lock of a folder.

    Args:
        folder: the folder, not a link to one.
        required: False to go on without a lock where the file system has none.

    Raises:
        OSError: it is no folder, or another process holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with suppress(*(() if required else (OSError,))):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all (UTF-8)."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


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
