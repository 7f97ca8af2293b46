"""A command from its start to its exit status: errors in one line, Ctrl-C and SIGTERM as a clean
end.
"""

import atexit
import errno
import gc
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import UsageError, one_line
from common.names import printable
from common.start import ROOT

EXIT_INTERRUPTED = 130  # exit status, as of a shell
EXIT_BROKEN_PIPE = 141  # the same of a program that writes to a pipe which nobody reads any more
RESUME_HINT = "from the last complete epoch"
LONGEST = 2000  # characters of an error: the fault comes first, the remedy last
LOWER_BATCH_SIZE = (
    "lower the batch size (of tools/predict.py: --batch-size; of a run: "
    "DATALOADER.{TRAIN_X,TEST}.BATCH_SIZE), or set MODEL.BACKBONE.CHECKPOINT_TEXT True"
)
LOADER_PROCESS = (
    "DataLoader worker"  # torch's error begins so if a process of the data loader has been killed
)
# Shortages of the machine, by the number of an OSError.
SHORTAGES = {
    errno.ENOSPC: ("the disk is full", "free some space, then run the same command again"),
    errno.EMFILE: (
        "too many files are open",
        "raise the limit by `ulimit -n 4096`, or lower DATALOADER.NUM_WORKERS",
    ),
}


def run_command(main: Callable[[], None], resumes: str = RESUME_HINT) -> None:
    """Run the `main` of a command. User errors become one line (exit status 2), Ctrl-C and SIGTERM
    a clean end (130).

    `--debug` on the command line, or MPL_DEBUG=1, shows the traceback of an error, causes included.
    `resumes` says where the same command resumes after an interrupt.
    """
    debug = "--debug" in sys.argv or os.environ.get("MPL_DEBUG", "") not in ("", "0")
    # Python's last garbage collection takes half a second: torch has a million objects
    atexit.register(gc.freeze)
    # None if the caller has closed it: a file that a run opens would get its number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
    hook = threading.excepthook
    threading.excepthook = report_thread
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may lack a letter, and file names may be bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with interruptible():
            try:
                main()
            except RuntimeError as error:
                if LOADER_PROCESS in str(error):
                    # The signal that ended the process is often on its way to this one, too
                    time.sleep(1)
                raise
            sys.stdout.flush()
    except BaseException as error:
        status = exit_status(error, resumes, debug)
        if status is None:
            raise
        sys.exit(status)
    finally:
        threading.excepthook = hook


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGTERM (Slurm's notice that time is up) raises KeyboardInterrupt, as Ctrl-C
    does.
    """

    process = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        # Workers of a data loader inherit this handler, and end silently
        if os.getpid() != process:
            os._exit(0)
        # torch raises an error for a worker of a data loader that the same signal has ended.
        signal.signal(signal.SIGCHLD, lambda *caught: None)
        sys.unraisablehook = unraisable
        raise KeyboardInterrupt

    def unraisable(lost: "sys.UnraisableHookArgs") -> None:
        # Python drops an exception that is raised while it deletes an object, and the interrupt may
        # be one.
        if isinstance(lost.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)  # again, elsewhere

    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    }
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as background jobs have it
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report_thread(failure: Any) -> None:
    """The hook for errors of threads. TensorBoard raises that of its writer again, in the thread
    that trains.
    """
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failure)


def exit_status(error: BaseException, resumes: str, debug: bool) -> int | None:
    """Print the error in one line; returns the exit status, None for a bug and for `sys.exit`."""
    # An interrupt may have led to other errors, such as that of a worker of the data loader that
    # has ended.
    if any(isinstance(cause, KeyboardInterrupt) for cause in exception_chain(error)):
        print(f"\nInterrupted. Run the same command again to resume {resumes}.", file=sys.stderr)
        return EXIT_INTERRUPTED
    # `head` has read enough; Python would flush once more at the end
    if isinstance(error, BrokenPipeError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    line = error_line(error)
    if line is None:
        return None
    if debug:
        for cause in exception_chain(error):
            cause.__suppress_context__ = False  # also those that `raise ... from None` hides
        traceback.print_exception(error)
    line = printable(" ".join(line.split()))
    print(
        f"error: {line if len(line) <= LONGEST else f'{line[:1000]} ... {line[-1000:]}'}",
        file=sys.stderr,
    )
    return 2


def error_line(error: BaseException) -> str | None:
    """The line to print for an error that the user can fix, or that means that the machine lacks
    something.

    None for a bug of this project or of a library.
    """
    if isinstance(error, UsageError | FloatingPointError):
        return str(error)
    for cause in exception_chain(error) if isinstance(error, Exception) else ():
        # torch's, of a GPU
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return str(UsageError(f"the memory is full ({one_line(cause)})", LOWER_BATCH_SIZE))
        if LOADER_PROCESS in str(cause) and isinstance(cause, RuntimeError):
            fault = (
                "a process of the data loader was killed, as when the memory is full "
                f"({one_line(cause)})"
            )
            return str(UsageError(fault, "lower DATALOADER.NUM_WORKERS"))
        if isinstance(cause, OSError) and cause.errno in SHORTAGES:
            fault, remedy = SHORTAGES[cause.errno]
            return str(UsageError(f"{fault} ({one_line(cause)})", remedy))
    if (
        isinstance(error, OSError)
        and error.filename is not None
        and not is_installed(error.filename)
    ):
        return str(error)
    return None


def is_installed(file: str | bytes | int) -> bool:
    """Whether a file belongs to Python, a library or this project: if it is missing, the user
    cannot fix that.
    """
    path = Path(os.path.abspath(os.fsdecode(file))) if not isinstance(file, int) else ROOT
    if path.is_relative_to(sys.prefix) or path.is_relative_to(sys.base_prefix):
        return True
    return (
        path.is_relative_to(ROOT)
        and (ROOT / path.relative_to(ROOT).parts[0] / "__init__.py").is_file()
    )


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, also those that `raise ... from None` hides."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
