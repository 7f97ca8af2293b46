"""Python starts this in a command of `make kill`: it counts file operations, and ends the command
before one of them.

KILLS_FILE gets a byte for each operation, of all processes of the command. KILLS_AT is the number
of an operation, KILLS_HOW what happens before it: KILL or TERM, a signal to the process, or FULL:
from then on the disk is full, so that what writes fails.
"""

import errno
import os
import signal
import sys

MEMORY = os.open(os.environ["KILLS_FILE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
AT = int(os.environ.get("KILLS_AT", -1))
HOW = os.environ.get("KILLS_HOW", "")
PLACE = os.getcwd()
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FREEING = ("os.remove", "os.rmdir")
WATCHED = ("os.rename", "os.mkdir", "os.link", "os.symlink", "os.truncate", *FREEING)


def see(event: str, arguments: tuple) -> None:
    if event == "open":
        if not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
    elif event not in WATCHED:
        return
    path = arguments[0]
    if not isinstance(path, int) and os.path.abspath(os.fsdecode(path)).startswith(PLACE):
        operation(event)


def operation(event: str) -> None:
    """Count an operation, and do what has to happen before it."""
    os.write(MEMORY, b".")
    number = os.fstat(MEMORY).st_size
    if HOW == "FULL" and number >= AT > 0 and event not in FREEING:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if HOW in ("KILL", "TERM") and number == AT:
        os.kill(os.getpid(), getattr(signal, f"SIG{HOW}"))


def flush(descriptor, fsync=os.fsync) -> None:  # audit hooks do not see it
    operation("os.fsync")
    fsync(descriptor)


os.fsync = flush
sys.addaudithook(see)
