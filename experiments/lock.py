"""One folder, one run: the lock of an output folder, and who holds it.

The lock is the kernel's (flock), so it ends with its process, however that ends; a shared file system passes it on to
other machines. Its two files are deleted at the end of the run. A killed process leaves them; the next run takes them
over.
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import UsageError
from common.files import write_text
from common.text import read_json

LOCK, HOLDER = ".lock", ".lock.json"
PATIENCE = 1.0  # seconds: `is_locked` of another process holds the lock for a moment
WITHOUT_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other runs out of an output folder, which is made if it is missing, and deleted again if it stays empty.

    On a file system without flock, a lock file takes its place where filelock has one; else a warning is printed.
    If `wait`, it waits for a run that is there already.

    Raises:
        UsageError: another run is there, or the folder is not writable.
    """
    lock, acquired = FileLock(folder / LOCK, poll_interval=0.5), False
    made: set[Path] = set()
    try:
        while not acquired:
            made |= {path for path in (folder, *folder.parents) if not path.exists()}
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the run before this one has just deleted the folder
                lock.acquire(timeout=-1 if wait else PATIENCE)
                acquired = True
    except Timeout:
        remedy = "wait until it has ended, or choose another --output-dir"
        raise UsageError(f"another run is in {folder}: {holder(folder)}", remedy, folder) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise not_writable(folder, error) from error
        print(f"The file system of {folder} has no locks: start no other run there until this one has ended")
    try:
        began = datetime.now().astimezone().isoformat(" ", "seconds")
        write_text(folder / HOLDER, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "began": began}))
        yield
    finally:
        for name in (HOLDER, LOCK):  # while the lock is held: a process that waits then makes another file
            with suppress(OSError):  # somebody has moved or replaced the folder, which the run's own error is about
                (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            for path in sorted(made, reverse=True):  # the innermost first
                path.rmdir()
        lock.release()


def not_writable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write to the output folder {folder} ({error.strerror})", "choose another --output-dir")


def remove_leftover(folder: Path) -> None:
    """Delete the lock of a finished run, which was killed just before it could do that itself."""
    if (folder / LOCK).is_file():
        with suppress(UsageError), locked(folder):
            pass


def holder(folder: Path) -> str:
    """Who holds the lock of a folder, for messages."""
    try:
        return "process {process} on {host}, since {began}".format(**read_json(folder / HOLDER, 10_000))
    except (ValueError, LookupError, TypeError):  # not written yet
        return "it has just begun"


def is_locked(folder: Path) -> bool:
    """Whether a run is in the folder now."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # the lock belongs to another user: treat as not running
        return False
