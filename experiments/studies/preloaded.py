"""Imported once by the process from which the workers of a study are forked."""

import sys
from types import TracebackType


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error, unless it only says that the main process has ended while a worker was starting.

    The semaphores of a worker are then gone, or the pipe that it reads its task from.
    """
    if not isinstance(error, FileNotFoundError | EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = report
