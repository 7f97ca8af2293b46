"""One folder, one run: the lock of an output folder.

The lock is the kernel's (flock) on the file `.lock`, so it ends with its process, however that
ends; a shared file system passes it on to other machines. The empty file stays.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError
from .files import check_regular

LOCK = ".lock"
MOMENT = 0.1  # seconds: who asks the same holds the lock for less
PATIENCE = 1.0  # seconds: `is_locked` of another process holds the lock for a moment
WITHOUT_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
OPTION = "--output-dir (scripts: OUT)"  # of a run
ANOTHER = f"choose another {OPTION}"


@contextmanager
def locked(
    folder: Path, wait: bool = False, option: str = OPTION, name: str = LOCK
) -> Iterator[None]:
    """Keep other runs out of an output folder, which is made if it is missing.

    On a file system without flock, a lock file takes its place where filelock has one; else a
    warning is printed. If `wait`, it waits for a run that is there already.

    Args:
        option: names the folder in the command, for the errors.
        name: of the file; runs with other names may be there.

    Raises:
        UsageError: another run is there, the folder is not writable, or it has links, pipes or
            devices (a folder that is locked by another name than LOCK is not looked at).
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / name, poll_interval=0.5)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else PATIENCE)
    except Timeout:
        if not (folder / name).exists():  # filelock never stops trying
            raise not_writable(folder, OSError("no file can be made there"), option) from None
        remedy = f"wait until it has ended, or choose another {option}"
        raise UsageError(f"another run is in {folder}", remedy, folder) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise not_writable(folder, error, option) from error
        print(
            f"The file system of {folder} has no locks: start no other run there until this one "
            "has ended"
        )
    try:
        if name == LOCK:
            check_regular(folder, option)
        yield
    finally:
        lock.release()


def not_writable(folder: Path, error: OSError, option: str = OPTION) -> UsageError:
    return UsageError(
        f"cannot write to the output folder {folder} ({error.strerror})", f"choose another {option}"
    )


def is_locked(folder: Path, name: str = LOCK) -> bool:
    """Whether a run is in the folder now, with a lock of this name."""
    from filelock import FileLock, Timeout

    if not (folder / name).is_file():
        return False
    try:
        with FileLock(folder / name, timeout=MOMENT):
            return False
    except Timeout:
        return True
    except OSError:  # the lock belongs to another user: treat as not running
        return False
