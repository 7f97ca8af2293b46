"""Copy everything printed to a log file."""

import os
import sys
import time
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path


class Logger:
    """A text stream that writes to the console and to a file; a context manager that closes the
    file.

    Other attributes (``isatty``, ``encoding``, ``fileno``, ...) are those of ``console``, which was
    ``sys.stdout`` when it was made. ``file`` is the open log at ``fpath``, or None without one and
    after :meth:`close`.
    """

    def __init__(self, fpath=None):
        self.console = sys.stdout
        self.file = None
        if fpath is not None:
            Path(fpath).parent.mkdir(parents=True, exist_ok=True)
            # Line by line, so that others can follow the log and a killed run keeps it. File names
            # may contain bytes that are not valid UTF-8.
            options = {"buffering": 1, "encoding": "utf-8", "errors": "backslashreplace"}
            self.file = open(fpath, "w", **options)  # noqa: SIM115 - closed by close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __getattr__(self, name):
        if name == "console":  # not set yet: avoid endless recursion
            raise AttributeError(name)
        return getattr(self.console, name)

    def write(self, msg):
        if self.file is not None:
            with self._error_names_file():
                self.file.write(msg)
        return self.console.write(msg)

    def flush(self):
        self.console.flush()
        if self.file is not None:
            with self._error_names_file():
                self.file.flush()
                os.fsync(self.file.fileno())

    @contextmanager
    def _error_names_file(self):
        try:
            yield
        except OSError as error:  # the disk is full
            raise OSError(error.errno, error.strerror, self.file.name) from error

    def close(self):
        """Close the file, not the console. If ``sys.stdout`` is this logger, make it the console
        again.
        """
        if sys.stdout is self:
            sys.stdout = self.console
        if self.file is not None:
            self.file.close()
            self.file = None


def on_terminal():
    """Whether a person watches: both stdout, or the console of its :class:`Logger`, and stderr are
    terminals.
    """
    return sys.stdout.isatty() and sys.stderr.isatty()


def print_detail(text):
    """Print a line for the log, which a terminal shows in another form or leaves out."""
    if not on_terminal():
        print(text)
    elif getattr(sys.stdout, "file", None) is not None:
        sys.stdout.file.write(f"{text}\n")


def print_on_terminal(text):
    """Print a line that only a terminal shows; the log does not have it."""
    if on_terminal():
        print(text, file=getattr(sys.stdout, "console", sys.stdout), flush=True)


def setup_logger(output=None):
    """Copy everything printed from now on to a log file, by replacing ``sys.stdout`` until the end
    of the logger.

    Args:
        output (str, optional): a folder (the log is ``<output>/log.txt``) or a file ending in .txt
            or .log. An existing log is kept, and the new one gets the time in its name. None:
            nothing changes.

    Returns:
        Logger: it ends with ``close()`` or a ``with`` block. A program that logs until its own end
            can ignore it.
    """
    if output is None:
        return Logger()
    fpath = Path(output)
    if fpath.suffix not in (".txt", ".log"):
        fpath = fpath / "log.txt"
    stamped = fpath.with_name(fpath.name + time.strftime("-%Y-%m-%d-%H-%M-%S", time.gmtime()))
    # Two runs started within one second
    later = (stamped.with_name(f"{stamped.name}-{twin}") for twin in count(2))
    # A link exists, too
    fpath = next(path for path in chain([fpath, stamped], later) if not os.path.lexists(path))
    sys.stdout = logger = Logger(fpath)
    return logger
