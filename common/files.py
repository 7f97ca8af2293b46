"""Files and folders that are written completely or not at all, their checksums, and errors about
missing ones.
"""

import errno
import fcntl
import filecmp
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from threading import get_native_id
from typing import Any

from .errors import UsageError

# Names of files in the output folder of a run
RUN_CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
BLOCK = 1 << 20
LOOKED_AT = 200  # entries of a folder
SHOWN = 20  # names in a message
# Name of an unfinished file, with the numbers of its process and thread
PARTIAL = r"\..+\.\d+-\d+\.partial"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of writing, whose errors name no file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path next to `path` to write to. At the end its content is on the disk, and replaces `path`
    in one step.

    After an error it is deleted, and `path` is what it was.

    Raises OSError if the disk is full or the folder is not writable; its text says so and names
    `path`. Other errors of the body stay as they are.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{get_native_id()}.partial")
    try:
        # Of a killed process, or a link that somebody has put there
        partial.unlink(missing_ok=True)
        yield partial
        flush_to_disk(partial)
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in FULL and str(error.filename) != str(partial):
            raise
        reason = f"cannot write: {error.strerror}; free some space or change the permissions"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        with suppress(OSError):  # the same again
            partial.unlink(missing_ok=True)
    with suppress(OSError):  # a file system without it
        flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the list of files of a folder, is on the disk: a power cut leaves it as
    it is.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file, all at once or part by part, completely or not at all; errors are those of
    `replacing`.
    """
    with replacing(path) as partial, open(partial, "xb") as file:
        for part in [content] if isinstance(content, bytes) else content:
            file.write(part)


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A new private folder `parent/prefix...`, deleted at the end. Folders that killed processes
    left are deleted, too.

    A lock of the kernel (flock) on a folder shows that its process lives. Raises OSError if
    `parent` is missing, full or not writable.
    """
    remove_left(parent, prefix)
    folder = Path(mkdtemp(prefix=prefix, dir=parent))
    while (lock := lock_on(folder)) is None:
        folder = Path(mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_left(parent: Path, prefix: str) -> None:
    """Delete the folders `parent/prefix...` of processes that have ended."""
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):  # in use, or not a folder of this user
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(lock)


def lock_on(folder: Path) -> int | None:
    """The descriptor of a new folder, with a lock; None if another process has taken it for one
    that was left.
    """
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # it is about to be deleted
        os.close(lock)
        return None
    except OSError:  # a file system without locks
        return lock
    if folder.is_dir():
        return lock
    os.close(lock)
    return None


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all (UTF-8)."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any, **how: Any) -> None:
    """Write a JSON file completely or not at all; `how` are options of `json.dumps`."""
    write_text(path, json.dumps(content, indent=1, **how) + "\n")


@contextmanager
def new_folder(folder: Path, key: str = "") -> Iterator[Path]:
    """A folder to write to. At the end its files are in `folder`; after an error it is deleted.

    Args:
        folder: new, or empty. Files that an interrupted call has left there are replaced if `key`
            is equal.
        key: name of the file that describes the others; it is moved to `folder` first.

    Raises UsageError if `folder` exists already, and is not such a folder; or nothing can be
    written there.
    """
    there = folder.is_dir()  # it may be the current folder or a mount, which cannot be replaced
    parent = (
        folder if there else next(parent for parent in folder.absolute().parents if parent.exists())
    )
    if not there and os.path.lexists(folder):
        raise UsageError(f"{folder} is not a folder", "choose another name, or delete it", folder)
    check_vacant(folder, key)
    # A call that was killed after it had moved its files has left an empty one.
    remove_left(folder.absolute().parent, stage_prefix(folder))
    with ExitStack() as stack:
        try:
            stage = (
                stack.enter_context(scratch(parent, stage_prefix(folder))) / folder.absolute().name
            )
            stage.mkdir()  # with the usual permissions
        except OSError as error:
            raise UsageError(
                f"cannot write to {folder} ({error.strerror})", "choose another folder", folder
            ) from error
        yield stage
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(stage, folder)
        except OSError:  # it exists
            check_vacant(folder, key, stage)
            for file in sorted(stage.iterdir(), key=lambda file: file.name != key):
                os.replace(file, folder / file.name)


def stage_prefix(folder: Path) -> str:
    return f".{folder.absolute().name}.partial-"


def check_vacant(folder: Path, key: str = "", stage: Path | None = None) -> None:
    """Check that a folder is missing or empty, or that its file `key` equals that of `stage`, if it
    exists yet. Raises UsageError if it has other files."""
    names = os.listdir(folder) if folder.is_dir() else []
    others = [name for name in names if not name.startswith(stage_prefix(folder))]
    files = folder / key, (stage or folder) / key
    if others and not (
        all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False)
    ):
        raise UsageError(f"{folder} is not empty", "choose another folder, or delete it", folder)


def check_folder(path: Path, fault: str, remedy: str) -> None:
    """Check that a folder exists. Raises UsageError if it does not. The message is `fault` (such as
    `there is no folder`), the path, how far it exists, and `remedy`."""
    if path.is_dir():
        return
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    exists = f"its path exists up to {folder}"
    # The file system's root, or that of the project, does not help
    if str(folder) not in (
        folder.anchor,
        ".",
    ):
        names = sorted(
            entry.name
            for entry in islice(folder.iterdir(), LOOKED_AT)
            if not entry.name.startswith(".")
        )
        more = ", ..." if len(names) > SHOWN else ""
        exists += f", which holds {', '.join(names[:SHOWN]) or 'nothing'}{more}"
    raise UsageError(f"{fault} {path}", f"{exists}; {remedy}", path)


def check_no_link(folder: Path, parent: Path) -> None:
    """Raise UsageError if `folder`, or one between `parent` and it, is a link: it may lead out of
    `parent`.
    """
    between = [folder, *folder.parents]
    for path in between[: between.index(parent)]:
        if path.is_symlink():
            raise UsageError(
                f"{path} is a link", f"replace it by a folder, or name another than {parent}", path
            )


def check_regular(folder: Path, option: str) -> None:
    """Check a folder that is written to: nothing in it may be a link, by which a command would
    write elsewhere, or a pipe or a device, which may never end. Raises UsageError, whose remedy
    names the `option` of the folder.
    """
    for entry in folder.iterdir():
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            fault = f"{entry} is a link or not a regular file"
            raise UsageError(fault, f"replace it, or choose another {option}", entry)


def checksum(path: Path, kind: str = "sha256") -> str:
    """The checksum of a file in hexadecimal, of a kind that hashlib knows."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def checksum_once(path: Path) -> str:
    """The SHA-256 of a file, which a process reads once, unless it is replaced or written to."""
    return _checksum(identity(path))


@lru_cache(4096)
def _checksum(file: tuple) -> str:
    return checksum(Path(file[0]))


def identity(path: Path) -> tuple:
    """The real path of a file, and facts that change when the file is replaced or written to."""
    status = os.stat(path)
    return (
        os.path.realpath(path),
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
