"""Everything printed also goes to a file."""

import os
import sys
import time
from pathlib import Path

__all__ = ["Logger", "setup_logger"]


class Logger:
    """A text stream that writes to the console and to a file.

    Anything else asked of it (``isatty``, ``encoding``, ``fileno``, ...) is answered by the console.

    Args:
        fpath (str or Path, optional): the log file, created with its folder; without it only the console is written.
    """

    def __init__(self, fpath=None):
        self.console = sys.stdout
        self.file = None
        if fpath is not None:
            Path(fpath).parent.mkdir(parents=True, exist_ok=True)
            # Names of files may be no text.
            self.file = open(fpath, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - closed by close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __getattr__(self, name):
        if name == "console":  # not there yet: never look it up on itself
            raise AttributeError(name)
        return getattr(self.console, name)

    def write(self, msg):
        if self.file is not None:
            self.file.write(msg)
        return self.console.write(msg)

    def flush(self):
        self.console.flush()
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self):
        """Close the file; the console stays open."""
        if self.file is not None:
            self.file.close()
            self.file = None


def setup_logger(output=None):
    """Send everything printed from now on to a log file as well.

    Args:
        output (str, optional): a folder (the log is ``<output>/log.txt``) or a file ending in .txt or .log. A log that
            is already there is kept, and the new one gets the time in its name. None: nothing is done.
    """
    if output is None:
        return
    fpath = Path(output)
    if fpath.suffix not in (".txt", ".log"):
        fpath = fpath / "log.txt"
    if fpath.exists():
        fpath = stamped = fpath.with_name(fpath.name + time.strftime("-%Y-%m-%d-%H-%M-%S"))
        twin = 2
        while fpath.exists():  # two runs started within one second
            fpath = stamped.with_name(f"{stamped.name}-{twin}")
            twin += 1
    sys.stdout = Logger(fpath)
